/* The form "Add destination": the folder it proposes lies on a node, and means nothing to another kind of store. */
(() => {
  "use strict";
  const kind = document.querySelector("select[name=kind]");
  const path = document.querySelector("input[name=path]");
  if (!kind || !path) return;
  const first = kind.value, proposed = path.value;
  kind.addEventListener("change", () => {
    if (kind.value !== first && path.value === proposed) path.value = "";
    else if (kind.value === first && !path.value) path.value = proposed;
  });
})();
