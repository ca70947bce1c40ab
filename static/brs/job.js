/* The page of a job: figures and log lines arrive over the socket; a change of state makes the page look again. */
(() => {
  "use strict";

  const { size, duration } = window.brsLive;

  const here = () => document.querySelector("[data-job][data-open]");

  const figure = (stage, name, text) => {
    const place = stage.querySelector(`[data-figure="${name}"]`);
    if (place && place.textContent !== text) place.textContent = text;
  };

  const draw = (task) => {
    const told = task.progress;
    const stages = [...document.querySelectorAll(`[data-task="${CSS.escape(task.id)}"]`)];
    const stage = stages.find((one) => one.dataset.stage === task.phase) || stages.at(task.phase ? -1 : 0);
    if (!stage) return;
    if (!stage.classList.contains("brs-active")) window.brsLive.lookSoon();
    /* A stream is read and stored at once: its Export shows what is read, its Store what is in the store. */
    const reading = task.kind === "backup" && stage.dataset.stage === "store" && stages.find((one) => one.dataset.stage === "export");
    if (reading && reading.classList.contains("brs-active") && told.total_bytes) {
      const read = Math.min(told.exported_bytes || 0, told.total_bytes);
      reading.querySelector('[data-figure="bar"]').style.width = `${Math.min(99, Math.round((100 * read) / told.total_bytes))}%`;
      figure(reading, "bytes", `${size(read)} / ${size(told.total_bytes)}`);
      if (read >= told.total_bytes) window.brsLive.lookSoon();
    }
    const share = Math.min(99, Math.round(task.percent || 0));
    const bar = stage.querySelector('[data-figure="bar"]');
    bar.style.width = `${share}%`;
    bar.parentElement.setAttribute("aria-valuenow", share);
    const done = size(told.done_bytes);
    figure(stage, "bytes", told.total_bytes ? `${done} / ${size(told.total_bytes)}` : told.whole ? "" : done);
    if (told.whole) {
      const items = told.total_files && !told.total_bytes;
      figure(stage, "files", items ? `${Math.min(told.done_files, told.total_files)} / ${told.total_files}` : "");
    }
    figure(stage, "rate", told.rate_bytes_s ? `${size(told.rate_bytes_s)}/s` : "");
    figure(stage, "eta", task.eta_s ? window.brsLive.words("left", duration(task.eta_s)) : "");
    figure(stage, "current", told.current || "");
    const parts = [...stage.querySelectorAll("[data-part]")];
    (told.parts || []).forEach((part, number) => {
      if (parts[number]) parts[number].textContent = `${size(part.done_bytes)} / ${size(part.total_bytes)}`;
    });
    if ((told.parts || []).length > 1 && !parts.length) window.brsLive.lookSoon();
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
    const page = here();
    if (message.type !== "job" || !page || message.job.id !== page.dataset.job) return;
    message.tasks.forEach((task) => { if (task.state === "running" || task.state === "leased") draw(task); });
    write(message.log);
    const state = [message.job.state, message.job.waiting_for, ...message.tasks.map((task) => task.state + task.phase)].join();
    if (page.dataset.seen !== undefined && page.dataset.seen !== state) window.brsLive.lookSoon();
    if (page.dataset.seen === undefined && page.dataset.state !== message.job.state) window.brsLive.lookSoon();
    page.dataset.seen = state;
  };

  window.brsLive.listeners.push(hear);
  const box = document.getElementById("job-log");
  if (box) box.scrollTop = box.scrollHeight;
  /* Also without the socket a running job moves. */
  setInterval(() => { if (here()?.dataset.open && !document.hidden) window.brsLive.look(); }, 15000);
})();
