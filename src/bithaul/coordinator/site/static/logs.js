// A search that found nothing in its stretch goes on by itself, until somebody touches the page.
"use strict";
(() => {
  const { $ } = window.bithaul;
  const on = $("[data-go-on]");
  const note = $("[data-going-on]");
  if (!on || !note) return;
  note.hidden = false;
  on.hidden = true;
  const timer = setTimeout(() => location.replace(on.href), 100);
  const stop = () => { clearTimeout(timer); window.stop(); note.hidden = true; on.hidden = false; };
  for (const touch of ["pointerdown", "keydown"]) document.addEventListener(touch, stop, { once: true });
})();

// Live tail: rows that came since the newest one shown. Paused, or scrolled away, it counts instead of moving the page.
(() => {
  const { $, localise, awake, leave } = window.bithaul;
  const body = $("#lines");
  const pause = $("[data-tail]");
  const fresh = $("[data-fresh]");
  if (!body || !pause || body.dataset.live !== "yes") return;
  const KEEP = 1000; // rows in the page, and of those that wait; older ones are a page away
  let newest = Number(body.dataset.newest);
  let paused = false;
  let waiting = []; // newest first
  let count = 0;
  let busy = false;

  const show = () => {
    body.prepend(...waiting);
    if (waiting.length) { body.closest(".scroll").hidden = false; $("[data-empty]")?.remove(); }
    localise(body);
    while (body.rows.length > KEEP) body.lastElementChild.remove();
    waiting = [];
    count = 0;
    fresh.hidden = true;
  };
  const say = () => {
    pause.disabled = !awake() && !document.hidden;
    pause.textContent = pause.disabled ? "Refresh is off" : paused ? "Go on" : "Pause";
    pause.setAttribute("aria-pressed", String(!paused && !pause.disabled));
  };
  const poll = async () => {
    if (busy) return;
    busy = true;
    let more = false;
    try {
      const query = new URLSearchParams(location.search);
      query.set("after", newest);
      for (const name of ["before", "period", "from", "did"]) query.delete(name);
      const answer = await fetch(`/admin/logs/tail?${query}`, { headers: { "X-Auto-Refresh": "1" }, redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 401) leave();
      if (!answer.ok) return;
      const came = document.createElement("template");
      came.innerHTML = await answer.text();
      newest = Number(answer.headers.get("bithaul-newest"));
      more = answer.headers.has("bithaul-more");
      const rows = [...came.content.querySelectorAll("tr")];
      if (!rows.length) return;
      waiting = [...rows, ...waiting].slice(0, KEEP);
      count += rows.length;
      if (!paused && scrollY < 80) show();
      else {
        fresh.hidden = false;
        fresh.textContent = `${count.toLocaleString("en")} new`;
      }
    } catch { /* the banner of site.js tells when the coordinator is away */ } finally { busy = false; }
    if (more && awake()) poll(); // after a night in a drawer, not 100 rows a second
  };
  pause.addEventListener("click", () => {
    paused = !paused;
    say();
    if (!paused) { show(); poll(); }
  });
  fresh.addEventListener("click", () => { show(); scrollTo({ top: 0 }); });
  document.addEventListener("bithaul:refresh", poll);
  document.addEventListener("bithaul:interval", say);
  setInterval(() => { if (awake()) poll(); }, 2000);
  say();
})();
