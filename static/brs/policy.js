/* The policy editor: while one types, the schedule in words and what the retention rule would keep. */
(() => {
  "use strict";
  const box = document.getElementById("simulator");
  const form = box && box.closest("form");
  if (!form) return;
  let timer = null;
  let asked = 0;

  const simulate = async () => {
    const query = new URLSearchParams();
    new FormData(form).forEach((value, key) => {
      if (/^keep_|^time_zone$|-cron$/.test(key) && !key.includes("__prefix__") && typeof value === "string") query.append(key, value);
    });
    const mine = (asked += 1);
    const answer = await fetch(`${box.dataset.simulate}?${query}`, { credentials: "same-origin" });
    if (answer.ok && mine === asked) {
      const text = await answer.text();
      box.replaceChildren(...new DOMParser().parseFromString(text, "text/html").body.childNodes);
      const calendar = box.querySelector(".brs-calendar");
      if (calendar) calendar.scrollLeft = calendar.scrollWidth;
    }
  };

  const say = async (input) => {
    let place = input.parentElement.querySelector(".brs-when");
    if (!place) {
      place = document.createElement("div");
      place.className = "brs-when brs-small";
      input.after(place);
    }
    const zone = form.elements.time_zone ? form.elements.time_zone.value : "UTC";
    const query = new URLSearchParams({ cron: input.value, time_zone: zone });
    const answer = await fetch(`${box.dataset.when}?${query}`, { credentials: "same-origin" });
    if (answer.ok) place.replaceChildren(...new DOMParser().parseFromString(await answer.text(), "text/html").body.childNodes);
  };

  const matches = document.getElementById("matches");
  const match = async () => {
    if (!matches) return;
    const query = new URLSearchParams({ tenant: (form.elements.tenant && form.elements.tenant.value) || matches.dataset.tenant });
    new FormData(form).forEach((value, key) => {
      if (/^rules-\d+-(by|pattern)$/.test(key) && !form.elements[key.replace(/(by|pattern)$/, "DELETE")]?.checked) query.append(key, value);
    });
    const answer = await fetch(`${matches.dataset.matches}?${query}`, { credentials: "same-origin" });
    if (answer.ok) matches.replaceChildren(...new DOMParser().parseFromString(await answer.text(), "text/html").body.childNodes);
  };

  const crons = () => [...form.querySelectorAll('input[name$="-cron"]')].filter((input) => !input.name.includes("__prefix__"));
  const soon = (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      simulate();
      if (!event || /^rules-/.test(event.target.name || "")) match();
      if (!event || /-cron$|^time_zone$/.test(event.target.name || "")) crons().filter((input) => input.value).forEach(say);
    }, 350);
  };
  form.addEventListener("input", soon);
  form.addEventListener("change", soon);
  soon();
})();
