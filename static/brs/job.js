/* The page of a job: figures and log lines arrive over the socket; a change of state makes the page look again. */
(() => {
  "use strict";

  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  const size = (count) => {
    let amount = Number(count) || 0;
    let unit = 0;
    while (Math.abs(amount) >= 1000 && unit < UNITS.length - 1) { amount /= 1024; unit += 1; }
    const digits = unit === 0 || Math.abs(amount) >= 100 ? 0 : 1;
    return `${amount.toLocaleString(document.documentElement.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${UNITS[unit]}`;
  };
  const duration = (seconds) => {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 60) return `${whole} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min`;
    return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  };

  const page = () => document.querySelector("[data-job][data-open]");

  const figure = (stage, name, text) => {
    const place = stage.querySelector(`[data-figure="${name}"]`);
    if (place && place.textContent !== text) place.textContent = text;
  };

  const draw = (taskId, told) => {
    const stages = [...document.querySelectorAll(`[data-task="${CSS.escape(taskId)}"]`)];
    const stage = stages.find((one) => one.dataset.stage === told.phase) || stages[0];
    if (!stage) return;
    if (stages.length > 1 && !stage.classList.contains("brs-active")) { window.brsLive.lookSoon(); }
    const share = told.total_bytes ? Math.min(99, Math.round((100 * told.done_bytes) / told.total_bytes)) : 0;
    const bar = stage.querySelector('[data-figure="bar"]');
    if (bar) {
      bar.style.width = `${share}%`;
      bar.parentElement.setAttribute("aria-valuenow", share);
    }
    const left = (told.total_bytes - told.done_bytes) / told.rate_bytes_s;
    figure(stage, "bytes", told.total_bytes ? `${size(told.done_bytes)} / ${size(told.total_bytes)}` : size(told.done_bytes));
    figure(stage, "rate", told.rate_bytes_s ? `${size(told.rate_bytes_s)}/s` : "");
    figure(stage, "eta", told.total_bytes && told.rate_bytes_s && left > 0 ? `~ ${duration(left)}` : "");
    figure(stage, "current", told.current || "");
  };

  const write = (lines) => {
    const box = document.getElementById("job-log");
    if (!box) return;
    const end = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
    lines.forEach((line) => {
      const id = Number(line.id || 0);
      if (id && id <= Number(box.dataset.last || 0)) return;
      if (id) box.dataset.last = String(id);
      box.querySelector("[data-empty]")?.remove();
      const row = document.createElement("div");
      row.className = `brs-level-${String(line.level).replace(/[^a-z]/g, "")}`;
      const time = document.createElement("time");
      time.textContent = String(line.at || "").slice(11, 19);
      row.append(time, document.createTextNode(line.message));
      box.append(row);
    });
    if (end) box.scrollTop = box.scrollHeight;
  };

  const hear = (message) => {
    const job = page();
    if (!job || String(message.id || message.job || "") !== job.dataset.job) return;
    (message.tasks || []).forEach((task) => draw(String(task.id), { ...task.progress, phase: task.phase || task.progress?.phase }));
    if (message.task && message.progress) draw(String(message.task), message.progress);
    if (message.log) write(message.log);
    if (message.state && message.state !== job.dataset.state) {
      const first = job.dataset.state === undefined;
      job.dataset.state = message.state;
      if (!first || job.dataset.shown !== message.state) window.brsLive.lookSoon();
    }
  };

  window.brsLive.listeners.push(hear);
  const box = document.getElementById("job-log");
  if (box) box.scrollTop = box.scrollHeight;
  /* Also without the socket a running job moves. */
  setInterval(() => { if (page()?.dataset.open && !document.hidden) window.brsLive.look(); }, 15000);
})();
