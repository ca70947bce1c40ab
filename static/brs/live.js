/* Keeps pages alive: one WebSocket a page, regions that look again when told to, dialogs for acts on objects.

   data-live            (with an id) this region is fetched anew when something it shows may have moved
   data-watch="a b"     what the page wants to hear of: "overview", "jobs", "job:<id>" …
   data-dialog          a link whose page is shown in a dialog
   data-copy="#id"      copies that element's text

   Messages are hints: after a gap, and while the connection is lost, the page asks the server itself. */

(() => {
  "use strict";

  const RETRY_MS = [500, 1000, 2000, 5000, 10000];
  const POLL_MS = 8000;
  const SETTLE_MS = 400;
  const WIDEST_MS = 1500;

  const live = { socket: null, tries: 0, ready: false, pending: null, lastLook: 0, lostSince: 0, listeners: [] };
  window.brsLive = live;

  /* What scripts say comes translated from templates/admin/base_site.html. */
  live.words = (name, ...values) => {
    const said = document.querySelector('meta[name="brs-words"]')?.dataset[name] || "";
    return values.reduce((text, value, number) => text.replace(`{${number}}`, value), said);
  };

  const watched = () => {
    const found = new Set();
    document.querySelectorAll("[data-watch]").forEach((element) => {
      element.dataset.watch.split(/\s+/).filter(Boolean).forEach((one) => found.add(one));
    });
    return [...found];
  };

  /* --- regions look again --- */

  let looking = false;
  let again = false;

  live.look = async () => {
    if (looking) { again = true; return; }
    const regions = [...document.querySelectorAll("[data-live][id]")];
    if (!regions.length && !document.getElementById("list-live")) return;
    looking = true;
    live.lastLook = Date.now();
    try {
      const answer = await fetch(location.href, { headers: { "X-Requested-With": "brs-live" }, credentials: "same-origin" });
      if (!answer.ok || answer.redirected) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      freshenList(fresh);
      regions.forEach((old) => {
        const now = fresh.getElementById(old.id);
        if (!now || now.innerHTML === old.innerHTML) return;
        if (old.contains(document.activeElement) && old.matches("[data-live-keep-focus]")) return;
        const scrolled = [...old.querySelectorAll("[data-keep-scroll]")].map((box) => [box.id, box.scrollTop, atEnd(box)]);
        const opened = [...old.querySelectorAll("details[id][open]")].map((one) => one.id);
        old.replaceChildren(...now.childNodes);
        opened.forEach((id) => { const one = document.getElementById(id); if (one) one.open = true; });
        scrolled.forEach(([id, top, end]) => {
          const box = document.getElementById(id);
          if (box) box.scrollTop = end ? box.scrollHeight : top;
        });
        if (window.htmx) window.htmx.process(old);
        old.dispatchEvent(new CustomEvent("brs:fresh", { bubbles: true }));
      });
      subscribe();
    } catch (_error) {
      /* the server is away; the notice says so, and we ask again */
    } finally {
      looking = false;
      if (again) { again = false; live.lookSoon(); }
    }
  };

  /* A list moves too, unless somebody is choosing rows in it. */
  const freshenList = (fresh) => {
    if (!document.getElementById("list-live") || document.querySelector(".action-select:checked")) return;
    const old = document.getElementById("result_list");
    const now = fresh.getElementById("result_list");
    if (old && now && old.innerHTML !== now.innerHTML) old.replaceChildren(...now.childNodes);
    else if (!old && now) location.reload();
  };

  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  live.size = (count) => {
    let amount = Number(count) || 0;
    let unit = 0;
    while (Math.abs(amount) >= 1000 && unit < UNITS.length - 1) { amount /= 1024; unit += 1; }
    const digits = unit === 0 || Math.abs(amount) >= 100 ? 0 : 1;
    return `${amount.toLocaleString(document.documentElement.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${UNITS[unit]}`;
  };
  live.duration = (seconds) => {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 60) return live.words("seconds", whole);
    if (whole < 3600) return live.words("minutes", Math.floor(whole / 60));
    return live.words("hours", Math.floor(whole / 3600), Math.floor((whole % 3600) / 60));
  };

  const bars = (message) => {
    if (message.type !== "job") return;
    const row = document.querySelector(`li[data-job="${CSS.escape(message.job.id)}"]`);
    const task = message.tasks.find((one) => one.state === "running");
    if (!row || !task) return;
    const told = task.progress || {};
    const known = task.percent !== null;
    if (known) row.querySelector(".brs-bar > span").style.width = `${task.percent}%`;
    const parts = [
      known ? `${Math.min(99, Math.round(task.percent))} %` : "",
      told.rate_bytes_s ? `${live.size(told.rate_bytes_s)}/s` : "",
      task.eta_s ? live.words("left", live.duration(task.eta_s)) : "",
    ];
    row.querySelector("[data-job-note]").textContent = parts.filter(Boolean).join(" · ");
  };
  live.listeners.push(bars);

  const atEnd = (box) => box.scrollHeight - box.scrollTop - box.clientHeight < 30;

  live.lookSoon = () => {
    if (live.pending) return;
    const wait = Math.max(SETTLE_MS, WIDEST_MS - (Date.now() - live.lastLook));
    live.pending = setTimeout(() => { live.pending = null; live.look(); }, wait);
  };

  /* --- the socket --- */

  const notice = () => {
    let box = document.getElementById("brs-lost");
    if (!box) {
      box = document.createElement("div");
      box.id = "brs-lost";
      box.className = "brs-lost";
      box.setAttribute("role", "status");
      const icon = document.createElement("span");
      icon.className = "material-symbols-outlined";
      icon.setAttribute("aria-hidden", "true");
      icon.textContent = "cloud_off";
      const words = document.createElement("span");
      words.textContent = live.words("lost");
      box.append(icon, words);
      document.body.append(box);
    }
    return box;
  };

  const connected = (yes) => {
    if (yes) {
      live.lostSince = 0;
      const box = document.getElementById("brs-lost");
      if (box) box.hidden = true;
      return;
    }
    live.lostSince = live.lostSince || Date.now();
    setTimeout(() => { if (live.lostSince && Date.now() - live.lostSince > 1800) notice().hidden = false; }, 2000);
  };

  const subscribe = () => {
    if (!live.ready) return;
    const now = watched();
    const text = JSON.stringify({ watch: now, answer: true });
    if (text === live.told) return;
    live.told = text;
    live.socket.send(text);
  };

  const connect = () => {
    if (!watched().length) return;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/ws/live/`);
    live.socket = socket;
    socket.onopen = () => {
      live.ready = true; live.tries = 0; live.told = "";
      connected(true);
      subscribe();
    };
    socket.onmessage = (event) => {
      let message;
      try { message = JSON.parse(event.data); } catch (_error) { return; }
      live.listeners.forEach((listener) => listener(message));
      /* What moved between the page's making and the server's "watching" was told to nobody. */
      if (message.type === "watching") live.look();
      if (message.type === "nudge") live.lookSoon();
    };
    socket.onclose = () => {
      live.ready = false;
      connected(false);
      const wait = RETRY_MS[Math.min(live.tries, RETRY_MS.length - 1)];
      live.tries += 1;
      setTimeout(connect, wait);
    };
  };

  /* --- dialogs --- */

  const dialog = () => {
    let box = document.getElementById("brs-dialog");
    if (!box) {
      box = document.createElement("dialog");
      box.id = "brs-dialog";
      box.className = "brs-dialog";
      document.body.append(box);
    }
    return box;
  };

  const show = (text, address) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    const content = page.querySelector("[data-dialog-content]");
    if (!content) { location.href = address; return; }
    const box = dialog();
    box.replaceChildren(document.adoptNode(content));
    const form = box.querySelector("form");
    if (form && !form.getAttribute("action")) form.action = address;
    if (window.htmx) window.htmx.process(box);
    if (!box.open) box.showModal();
  };

  const openDialog = async (address) => {
    const answer = await fetch(address, { credentials: "same-origin" });
    if (!answer.ok) { location.href = address; return; }
    show(await answer.text(), address);
  };

  const submitDialog = async (form) => {
    const buttons = form.querySelectorAll("button");
    buttons.forEach((button) => { button.disabled = true; });
    const answer = await fetch(form.action, { method: "POST", body: new FormData(form), credentials: "same-origin" });
    const kind = answer.headers.get("Content-Disposition") || "";
    if (kind.startsWith("attachment")) { save(await answer.blob(), kind); dialog().close(); live.look(); return; }
    if (answer.redirected) { location.href = answer.url; return; }
    if (answer.ok) { show(await answer.text(), form.action); return; }
    document.open(); document.write(await answer.text()); document.close();
  };

  const save = (blob, disposition) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = (/filename="([^"]+)"/.exec(disposition) || [])[1] || live.words("file");
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  document.addEventListener("click", (event) => {
    const opener = event.target.closest("a[data-dialog]") || (document.querySelector("[data-add-in-dialog]") && event.target.closest("a.addlink"));
    if (opener && !event.ctrlKey && !event.metaKey && event.button === 0) {
      event.preventDefault();
      openDialog(opener.href);
      return;
    }
    const closer = event.target.closest("[data-dialog-close]");
    if (closer && closer.closest("dialog")) { event.preventDefault(); dialog().close(); }
    const copier = event.target.closest("[data-copy]");
    if (copier) copy(copier);
  });

  document.addEventListener("submit", (event) => {
    if (event.target.closest("dialog.brs-dialog")) { event.preventDefault(); submitDialog(event.target); }
  });

  const copy = async (button) => {
    const text = document.querySelector(button.dataset.copy).textContent.trim();
    try { await navigator.clipboard.writeText(text); } catch (_error) {
      const range = document.createRange();
      range.selectNodeContents(document.querySelector(button.dataset.copy));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      return;
    }
    const words = button.querySelector("span:last-child");
    const before = words.textContent;
    words.textContent = button.dataset.copied || before;
    setTimeout(() => { words.textContent = before; }, 2000);
  };

  /* A link to a folded part unfolds it. */
  const unfold = () => {
    const part = document.getElementById(location.hash.slice(1));
    if (part && part.matches("details")) { part.open = true; part.scrollIntoView(); }
  };
  window.addEventListener("hashchange", unfold);

  document.addEventListener("DOMContentLoaded", () => {
    connect();
    unfold();
    setInterval(() => { if (watched().length && !live.ready && !document.hidden) live.look(); }, POLL_MS);
    document.addEventListener("visibilitychange", () => { if (!document.hidden) live.lookSoon(); });
  });
})();
