// The small script of every page: refresh that keeps zoom, scroll and focus; times in the viewer's zone; keys; copy.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Times: the server writes UTC, this writes the viewer's own; "ago" is kept true between refreshes.
  const two = (n) => String(n).padStart(2, "0");
  const clock = (d) => `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  const day = (d) => `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`;
  let skew = 0; // server time less ours, so that a wrong clock here does not make everything "in the future"
  const span = (s) => {
    if (s < 1) return "now";
    if (s < 60) return `${Math.floor(s)} s ago`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${two(Math.floor(s % 60))} s ago`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min ago`;
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h ago`;
  };
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const localise = (root = document) => {
    for (const node of $$("time[datetime]", root)) {
      const at = new Date(node.dateTime);
      const style = node.dataset.shown;
      if (style === "ago") put(node, span((Date.now() + skew - at) / 1000));
      else if (style === "log") put(node, `${day(at).slice(5)} ${clock(at)}`);
      else put(node, style === "clock" ? clock(at) : `${day(at)} ${clock(at).slice(0, 5)}`);
    }
  };

  // Refresh: a timer that rests while the page is hidden and starts at once when it comes back.
  const refresher = $("#refresher");
  const choice = $("[data-interval]");
  const away = $("#away");
  const KEY = "bithaul.refresh";
  let updated = Date.now();
  let timer = 0;
  let signedOut = false;
  const seconds = () => (choice ? Number(choice.value) : 0);
  const awake = () => seconds() > 0 && !signedOut && !document.hidden; // whether anything may be asked for by itself
  const plan = () => {
    clearTimeout(timer);
    if (awake()) timer = setTimeout(refresh, Math.max(200, updated + seconds() * 1000 - Date.now()));
  };
  const refresh = () => {
    clearTimeout(timer);
    if (!refresher || !window.htmx) return;
    htmx.trigger(refresher, "bithaul:refresh");
    document.dispatchEvent(new CustomEvent("bithaul:refresh"));
  };
  const say = (text, link) => {
    document.body.classList.toggle("is-away", Boolean(text));
    if (!away) return;
    away.hidden = !text;
    away.textContent = text || "";
    if (link) {
      const a = document.createElement("a");
      a.href = link;
      a.textContent = "Sign in again";
      away.append(a);
    }
  };
  const leave = () => {
    signedOut = true;
    clearTimeout(timer);
    say("You are signed out. ", refresher?.getAttribute("hx-get") || location.href); // a form's address is no page
    document.dispatchEvent(new CustomEvent("bithaul:interval"));
  };
  const trouble = (xhr) => (xhr.status ? `The coordinator answered with an error (${xhr.status}).` : "The coordinator does not answer.");
  const failed = (xhr) => {
    say(`${trouble(xhr)} What you see is from ${clock(new Date(updated))}; trying again${seconds() ? ` every ${seconds()} s` : " when you press r"}.`);
    clearTimeout(timer);
    if (seconds() && !document.hidden) timer = setTimeout(refresh, seconds() * 1000);
  };
  if (refresher) {
    const stored = localStorage.getItem(KEY);
    if (choice && stored !== null && $$("option", choice).some((o) => o.value === stored)) choice.value = stored;
    choice?.addEventListener("change", () => { localStorage.setItem(KEY, choice.value); updated = Math.max(updated, Date.now() - seconds() * 1000); plan(); document.dispatchEvent(new CustomEvent("bithaul:interval")); });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) clearTimeout(timer);
      else if (seconds() && !signedOut && Date.now() - updated >= seconds() * 1000) refresh();
      else plan();
    });
    document.addEventListener("htmx:beforeSwap", (event) => { // fires on the target, not on who asked
      const asked = new URL(event.detail.pathInfo.finalRequestPath, location.href).pathname;
      const got = event.detail.xhr.responseURL ? new URL(event.detail.xhr.responseURL).pathname : asked;
      if (got !== asked || event.detail.xhr.status === 401) {
        event.detail.shouldSwap = false;
        leave();
      }
    });
    refresher.addEventListener("htmx:afterRequest", (event) => {
      if (signedOut) return;
      if (!event.detail.successful) { failed(event.detail.xhr); return; }
      say("");
      updated = Date.now();
      const date = Date.parse(event.detail.xhr.getResponseHeader("date") || "");
      if (date && Math.abs(date - updated) > 5000) skew = date - updated;
      plan();
    });
    setInterval(() => {
      const text = $("[data-updated]");
      if (text) put(text, `updated ${span((Date.now() - updated) / 1000)}`);
      localise();
    }, 1000);
    plan();
  }
  const polls = (event) => "X-Auto-Refresh" in event.detail.requestConfig.headers;
  for (const name of ["htmx:sendError", "htmx:timeout", "htmx:responseError"]) { // what somebody asked for is told at once
    document.addEventListener(name, (event) => {
      const { xhr } = event.detail;
      if (!polls(event) && !signedOut && !xhr.getResponseHeader("bithaul-part")) say(`${trouble(xhr)} Try again in a moment.`);
    });
  }
  document.addEventListener("htmx:beforeRequest", (event) => { if (signedOut && polls(event)) event.preventDefault(); }); // nobody is there to ask
  document.addEventListener("htmx:afterRequest", (event) => { if (!polls(event) && !signedOut && event.detail.successful) say(""); });
  document.addEventListener("htmx:beforeSwap", (event) => { // an error that is a part of the page is shown in its place
    if (event.detail.xhr.getResponseHeader("bithaul-part")) event.detail.shouldSwap = true;
  });
  document.addEventListener("htmx:afterSwap", (event) => localise(event.target.parentNode || document));
  const empty = $("[data-no-run]");
  document.addEventListener("htmx:oobAfterSwap", (event) => {
    localise(event.target);
    if (empty && !$("[data-no-run]")) location.reload(); // the run is there: now the page has curves
  });

  // A refresh must not close what the viewer opened, nor touch what they type.
  if (window.Idiomorph) {
    Idiomorph.defaults.ignoreActiveValue = true;
    Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) => !(name === "open" && node.tagName === "DETAILS");
    Idiomorph.defaults.callbacks.beforeNodeMorphed = (node) => !(node.matches && node.matches(":popover-open, [data-still]"));
    Idiomorph.defaults.callbacks.beforeNodeRemoved = (node) => !(node.matches && node.matches(":popover-open"));
  }

  // Keys: "/" search, "g d" dashboard and so on, "r" refresh, "?" help.
  let leader = 0;
  document.addEventListener("keydown", (event) => {
    const field = event.target.closest?.("input, select, textarea, [contenteditable]");
    if (event.key === "Escape" && field) { field.blur(); return; }
    if (field || event.ctrlKey || event.metaKey || event.altKey) return;
    if (Date.now() - leader < 1500) {
      leader = 0;
      const link = $(`[data-go="${CSS.escape(event.key)}"]`);
      if (link) { event.preventDefault(); link.click(); }
      return;
    }
    if (event.key === "g") leader = Date.now();
    else if (event.key === "r") refresh();
    else if (event.key === "?") $("#help")?.togglePopover();
    else if (event.key === "/") {
      event.preventDefault();
      const search = $("[data-search]");
      if (search) { search.focus(); search.select(); } else location.href = "/admin/logs#search";
    }
  });
  if (location.hash === "#search") $("[data-search]")?.focus();

  // A form that does something is sent once; coming back to the page makes its buttons work again.
  const sendable = (form) => $$("button:not([type=button])", form);
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method === "post" && !form.hasAttribute("hx-post")) setTimeout(() => { if (!event.defaultPrevented) for (const button of sendable(form)) button.disabled = true; });
  });
  addEventListener("pageshow", (event) => { if (event.persisted) for (const form of document.forms) for (const button of sendable(form)) button.disabled = false; });

  // Times in a form are the viewer's, in the address they are UTC.
  for (const input of $$("input[type=datetime-local]")) {
    const at = new Date(`${input.value}Z`);
    if (input.value) input.value = `${day(at)}T${clock(at).slice(0, 5)}`;
  }
  for (const node of $$("[data-utc]")) node.hidden = true;
  document.addEventListener("formdata", (event) => {
    for (const input of $$("input[type=datetime-local]", event.target)) {
      if (input.value) event.formData.set(input.name, `${new Date(input.value).toISOString().slice(0, 16)}Z`);
    }
  });

  // Filters apply when a choice changes, words and times at Enter or the button; copying says that it did.
  // The page that comes has the focus where it was: with arrow keys each step is a choice.
  const FIELD = "bithaul.field";
  document.addEventListener("change", (event) => {
    if (!event.target.closest("form[data-auto]") || event.target.tagName !== "SELECT") return;
    sessionStorage.setItem(FIELD, event.target.name);
    event.target.form.requestSubmit();
  });
  const chosen = sessionStorage.getItem(FIELD);
  sessionStorage.removeItem(FIELD);
  if (chosen) $(`form[data-auto] select[name="${CSS.escape(chosen)}"]`)?.focus();
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = document.getElementById(button.dataset.copy).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
      button.textContent = "Press Ctrl-C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });

  const current = $(".nav [aria-current]"); // on a phone the row of pages is wider than the screen
  if (current) current.parentElement.scrollLeft = current.offsetLeft - current.parentElement.offsetLeft - current.parentElement.clientWidth / 2 + current.offsetWidth / 2;
  localise();
  window.bithaul = { $, $$, localise, clock, day, refresh, awake, leave };
})();
