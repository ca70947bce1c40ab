/* The restore wizard: picking a point on the timeline, choosing files in a tree that loads as it is opened. */
(() => {
  "use strict";

  const points = document.querySelector("[data-points]");
  if (points) {
    const mark = (id) => points.querySelectorAll("[data-pick]").forEach((dot) => {
      if (dot.dataset.pick === id) dot.setAttribute("aria-current", "true"); else dot.removeAttribute("aria-current");
    });
    points.addEventListener("click", (event) => {
      const dot = event.target.closest("[data-pick]");
      if (!dot) return;
      const radio = document.getElementById(`point-${dot.dataset.pick}`);
      radio.checked = true;
      radio.scrollIntoView({ block: "nearest" });
      mark(dot.dataset.pick);
    });
    points.addEventListener("change", (event) => { if (event.target.name === "point") mark(event.target.value); });
  }

  const target = document.querySelector("[data-target]");
  if (target) {
    const show = () => {
      const inPlace = target.querySelector("input[name=where]:checked")?.value === "in-place";
      const machine = Boolean(target.elements.platform);
      const names = machine ? ["platform", "name", "host", "storage", "format", "networks", "new_identity"] : ["path", "node", "format"];
      names.forEach((name) => {
        const box = target.elements[name]?.closest(".group");
        if (box) box.classList.toggle("brs-hidden", inPlace && name !== "node");
      });
    };
    target.addEventListener("change", show);
    show();
  }

  const start = () => {
    const form = document.querySelector("[data-files]");
    if (!form || form.dataset.started) return;
    form.dataset.started = "1";
    const chosen = new Map(JSON.parse(document.getElementById("chosen-before").textContent).map((path) => [path, path]));
    const chooser = form.querySelector("[data-chooser]");
    const results = form.querySelector("[data-results]");
    const list = form.querySelector("[data-list]");
    const first = results ? results.innerHTML : "";

    const draw = () => {
      if (!list) return;
      list.replaceChildren(...[...chosen.keys()].map((path) => {
        const row = document.createElement("li");
        row.className = "brs-row";
        const name = document.createElement("span");
        name.className = "brs-wrap brs-grow";
        name.textContent = path;
        const field = document.createElement("input");
        field.type = "hidden"; field.name = "chosen"; field.value = path;
        const off = document.createElement("button");
        off.setAttribute("aria-label", `${form.dataset.removeWords} ${path}`);
        off.type = "button"; off.className = "brs-button brs-slim"; off.textContent = "×";
        off.addEventListener("click", () => { chosen.delete(path); draw(); tick(); });
        row.append(name, field, off);
        return row;
      }));
      form.querySelector("[data-count]").textContent = String(chosen.size);
      form.querySelector("[data-nothing]").hidden = chosen.size > 0;
    };

    const covered = (path) => [...chosen.keys()].some((one) => path.startsWith(`${one === "/" ? "" : one}/`));
    const tick = () => form.querySelectorAll("[data-path]").forEach((box) => {
      const above = covered(box.dataset.path);
      box.checked = above || chosen.has(box.dataset.path);
      box.disabled = above;
    });

    const load = async (query, place) => {
      const answer = await fetch(`${form.dataset.tree}?${new URLSearchParams(query)}`, { credentials: "same-origin" });
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      place.replaceChildren(...page.body.childNodes);
      tick();
    };

    form.addEventListener("change", (event) => {
      if (event.target.name === "what") chooser.classList.toggle("brs-hidden", event.target.value === "all");
      const path = event.target.dataset.path;
      if (path === undefined) return;
      if (event.target.checked) {
        [...chosen.keys()].filter((one) => one.startsWith(`${path}/`)).forEach((one) => chosen.delete(one));
        chosen.set(path, path);
      } else chosen.delete(path);
      draw(); tick();
    });

    form.addEventListener("click", (event) => {
      const opener = event.target.closest("[data-open]");
      if (!opener) return;
      const row = opener.closest("li");
      const below = row.querySelector(":scope > div[data-below]");
      const open = opener.getAttribute("aria-expanded") !== "true";
      opener.setAttribute("aria-expanded", String(open));
      if (below) { below.hidden = !open; return; }
      const place = document.createElement("div");
      place.dataset.below = "";
      place.style.paddingLeft = "1.35rem";
      row.append(place);
      load({ path: opener.dataset.open }, place);
    });

    let timer = null;
    form.querySelector("#tree-q")?.addEventListener("input", (event) => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        const term = event.target.value.trim();
        if (term) load({ q: term }, results); else { results.innerHTML = first; tick(); }
      }, 300);
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target.id === "tree-q") event.preventDefault();
    });
    draw(); tick();
    const folders = results ? results.querySelectorAll("[data-open]") : [];
    if (folders.length === 1) folders[0].click(); /* the way to the only folder is no choice */
  };
  start();
  /* The list has come: from now on nothing may replace the tree under somebody who chooses in it. */
  document.addEventListener("brs:fresh", (event) => {
    if (event.target.querySelector("[data-results]")) {
      event.target.removeAttribute("data-live");
      event.target.removeAttribute("data-watch");
    }
    start();
  });
})();
