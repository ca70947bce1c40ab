/* The form "Protect something": shows what the node may read, and names the workload after its path. */
(() => {
  "use strict";
  const form = document.querySelector("[data-protect]");
  if (!form) return;
  const roots = JSON.parse(document.getElementById("node-roots").textContent);
  const field = (name) => form.elements[name];
  const hint = form.querySelector("[data-roots]");
  let named = Boolean(field("name").value);

  const show = () => {
    const own = roots[field("node").value] || [];
    hint.hidden = own.length === 0;
    hint.querySelector("span").textContent = own.join(", ");
    hint.dataset.first = own[0] || "";
    if (!field("paths").value && own.length) field("paths").placeholder = own[0];
  };

  const name = () => {
    if (named) return;
    const first = field("paths").value.split("\n")[0].trim().replace(/\/+$/, "");
    field("name").value = first.split("/").pop() || "";
  };

  const whereTo = () => {
    const box = field("destination").closest(".group");
    if (box) box.classList.toggle("brs-hidden", Boolean(field("policy").value));
  };

  const kind = () => {
    const image = form.querySelector("input[name=kind]:checked")?.value === "image";
    const box = field("excludes").closest(".group");
    if (box) box.classList.toggle("brs-hidden", image);
  };

  field("name").addEventListener("input", () => { named = Boolean(field("name").value); });
  field("paths").addEventListener("input", name);
  field("node").addEventListener("change", show);
  field("policy").addEventListener("change", whereTo);
  form.querySelectorAll("input[name=kind]").forEach((radio) => radio.addEventListener("change", kind));
  field("paths").closest(".group").append(hint);
  show(); whereTo(); kind();
})();
