// The dashboard's curves. They sit outside what a refresh swaps, are fed by deltas since a cursor, and keep their zoom.
"use strict";
(() => {
  const { $, $$, clock, day } = window.bithaul;
  const box = (name) => $(`[data-chart="${name}"]`);
  if (!window.uPlot || !box("loss") || box("loss").offsetParent === null) return;

  const rows = new Map(); // version -> {version, time, tokens, train, low, high, heldout, speed, staleness}
  const COLUMNS = ["version", "time", "tokens", "train", "low", "high", "heldout", "speed", "staleness"];
  let marks = [];
  let cursor = 0;
  let total = 0;
  let whole = 0; // versions there were when everything was last fetched
  let axis = localStorage.getItem("bithaul.axis") || "version";
  let scale = localStorage.getItem("bithaul.scale") || "linear";
  let zoomed = false;
  let busy = false;
  const plots = {};
  const MOST = 4000; // points held before everything is fetched anew, thinned by the server

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const short = (v) => v == null ? "" : Math.abs(v) >= 1e9 ? `${+(v / 1e9).toPrecision(3)}B` : Math.abs(v) >= 1e6 ? `${+(v / 1e6).toPrecision(3)}M` : Math.abs(v) >= 1e4 ? `${+(v / 1e3).toPrecision(3)}k` : `${+v.toPrecision(6)}`;
  const xOf = (row) => row[axis];
  const xText = (v) => axis === "time" ? `${day(new Date(v * 1000)).slice(5)} ${clock(new Date(v * 1000))}` : axis === "tokens" ? `${short(v)} tokens` : `version ${Math.round(v)}`;

  // Smoothed without lagging behind a curve that falls: at each version the straight line that fits its neighbours
  // best, near ones counting more. Each counts for the stretch it stands for, so thinning does not move the line.
  const smooth = (list, name) => {
    const known = list.filter((row) => row[name] != null);
    const at = known.map((row) => row.version);
    const share = at.map((v, i) => ((at[i + 1] ?? v) - (at[i - 1] ?? v)) / 2 || 1);
    const line = new Map();
    let from = 0;
    for (const row of known) {
      const width = Math.min(12, 1 + row.version / 24); // a fast fall at the start is no noise
      while (row.version - at[from] > 3 * width) from += 1;
      let [weight, along, square, sum, tilt] = [0, 0, 0, 0, 0];
      for (let i = from; i < at.length && at[i] - row.version <= 3 * width; i += 1) {
        const off = (at[i] - row.version) / width;
        const part = share[i] * Math.exp((-off * off) / 2);
        weight += part;
        along += part * off;
        square += part * off * off;
        sum += part * known[i][name];
        tilt += part * off * known[i][name];
      }
      const spread = weight * square - along * along;
      line.set(row.version, spread > 1e-9 * weight * weight ? (square * sum - along * tilt) / spread : sum / weight);
    }
    return list.map((row) => line.get(row.version) ?? null);
  };

  let ready = null; // rows in order and their smoothed lines, until rows change
  const ordered = () => {
    if (!ready) {
      const list = [...rows.values()].sort((a, b) => a.version - b.version);
      ready = { list, train: smooth(list, "train"), speed: smooth(list, "speed"), staleness: smooth(list, "staleness") };
    }
    return ready;
  };
  const sorted = () => ordered().list;
  const logged = (list) => scale === "log" ? list.map((v) => (v !== null && v > 0 ? v : null)) : list;
  const data = () => {
    const { list, train, speed, staleness } = ordered();
    const x = list.map(xOf);
    const pick = (name) => list.map((row) => row[name]);
    return {
      list,
      loss: [x, logged(pick("high")), logged(pick("low")), logged(pick("train")), logged(train), logged(pick("heldout"))],
      speed: [x, pick("speed"), speed],
      staleness: [x, pick("staleness"), staleness],
    };
  };

  const axisStyle = () => ({ stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1, size: 4 }, font: "12px system-ui, sans-serif" });
  const base = (name, yValues) => ({
    width: box(name).clientWidth - 24,
    height: box(name).clientHeight - 16,
    pxAlign: false,
    cursor: { sync: { key: "run" }, drag: { x: true, y: false, setScale: true }, points: { size: 7 } },
    scales: { x: { time: axis === "time" }, y: name === "loss" ? { distr: scale === "log" ? 3 : 1 } : { range: (_, __, max) => [0, max > 0 ? max * 1.08 : 1] } },
    axes: [
      { ...axisStyle(), size: 30, values: axis === "time" ? undefined : (_, ticks) => ticks.map((v) => axis === "version" && v % 1 ? "" : short(v)) },
      { ...axisStyle(), size: 54, values: yValues },
    ],
    hooks: { ready: [(u) => drag(u)], setSelect: [(u) => { if (u.select.width > 0) zoom(true); }], setCursor: [(u) => { if (u.cursor.idx != null || name === "loss") legend(u.cursor.idx); }] },
    legend: { show: false },
  });

  // Vertical lines: versions while there are few; refused updates, restarts, pauses and rollbacks always.
  const events = {
    hooks: {
      drawClear: [(u) => {
        const list = sorted();
        const { ctx } = u;
        const { left, top, width, height } = u.bbox;
        const line = (x, style, dash) => {
          const at = u.valToPos(x, "x", true);
          if (at < left || at > left + width) return;
          ctx.strokeStyle = style;
          ctx.setLineDash(dash);
          ctx.beginPath();
          ctx.moveTo(at, top);
          ctx.lineTo(at, top + height);
          ctx.stroke();
        };
        ctx.save();
        ctx.lineWidth = devicePixelRatio;
        const inView = list.filter((row) => xOf(row) >= u.scales.x.min && xOf(row) <= u.scales.x.max);
        if (inView.length <= 60 && axis !== "version") for (const row of inView) line(xOf(row), colour("line"), []);
        for (const mark of marks) {
          const near = list.find((row) => row.time >= mark.time) || list[list.length - 1];
          const steered = mark.kind === "steered";
          const dash = (steered ? [6, 3] : [2, 3]).map((n) => n * devicePixelRatio);
          if (near) line(axis === "time" ? mark.time : xOf(near), colour(steered ? "muted" : "bad"), dash);
        }
        ctx.restore();
      }],
    },
  };

  const dots = (u, i) => { // alone points would be invisible; a thin series shows each of its points
    const known = u.data[i].reduce((n, v) => n + (v !== null ? 1 : 0), 0);
    return known <= 60;
  };
  const draw = () => {
    for (const plot of Object.values(plots)) plot.destroy();
    const d = data();
    const loss = base("loss", (_, ticks) => ticks.map((v) => v === null ? "" : String(+v.toPrecision(3))));
    const spanGaps = true;
    loss.series = [
      {},
      { stroke: "transparent", points: { show: false }, spanGaps },
      { stroke: "transparent", points: { show: false }, spanGaps },
      { stroke: colour("train") + "80", width: 1, points: { show: false }, spanGaps },
      { stroke: colour("train"), width: 2.25, points: { show: false }, spanGaps },
      { stroke: colour("heldout"), width: 2, dash: [6, 4], points: { show: dots, size: 6, fill: colour("heldout"), stroke: colour("surface") }, spanGaps },
    ];
    loss.bands = [{ series: [1, 2], fill: colour("band") }];
    loss.plugins = [events];
    plots.loss = new uPlot(loss, d.loss, box("loss"));
    const simple = (name, stroke, text) => {
      const options = base(name, (_, ticks) => ticks.map(text));
      options.series = [
        {},
        { stroke: stroke + "66", width: 1, fill: stroke + "17", points: { show: false }, spanGaps },
        { stroke, width: 2, points: { show: false }, spanGaps },
      ];
      plots[name] = new uPlot(options, d[name], box(name));
    };
    simple("speed", colour("third"), short);
    simple("staleness", colour("busy"), (v) => String(+v.toPrecision(3)));
    legend(null);
  };

  const told = (list, at) => { // what happened between this point and the one before it
    const since = at > 0 ? list[at - 1].time : -Infinity;
    const here = marks.filter((m) => m.time > since && m.time <= list[at].time).map((m) => m.text);
    return here.length > 2 ? [...here.slice(0, 2), `${here.length - 2} more`] : here;
  };
  const legend = (index) => {
    const list = sorted();
    const at = index ?? list.length - 1;
    const last = (name) => { for (let i = at; i >= 0; i--) if (list[i]?.[name] != null) return list[i][name]; return null; };
    const set = (name, text) => $$(`[data-value="${name}"]`).forEach((node) => { node.textContent = text; });
    const four = (v) => (v === null ? "–" : v.toFixed(4));
    set("train", four(last("train")));
    set("smooth", four(ordered().train[at] ?? null));
    set("at", list[at] ? `version ${list[at].version}` : "");
    set("heldout", four(last("heldout")));
    const speed = last("speed");
    const stale = last("staleness");
    set("speed", speed === null ? "–" : Math.round(speed).toLocaleString("en"));
    set("staleness", stale === null ? "–" : stale.toFixed(2));
    const node = $("[data-thinned]");
    const text = index == null ? (total > rows.size ? `showing ${rows.size} of ${total.toLocaleString("en")} versions, spikes kept` : "") : list[at] ? [xText(xOf(list[at])), ...told(list, at)].join(" · ") : "";
    if (node && node.textContent !== text) node.textContent = text;
  };

  const take = (view) => {
    ready = null;
    if (view.whole) rows.clear();
    view.version.forEach((version, i) => rows.set(version, Object.fromEntries(COLUMNS.map((name) => [name, view[name][i]]))));
    if (view.whole) { total = view.total; whole = view.cursor; marks = view.marks; } else {
      total += Math.max(0, view.cursor - cursor);
      const known = new Set(marks.map((m) => m.time + m.text));
      marks = marks.concat(view.marks.filter((m) => !known.has(m.time + m.text))).slice(-400);
    }
    cursor = view.cursor;
  };
  const fetchCurve = async (query) => {
    const answer = await fetch(`/admin/curve.json${query}`, { headers: { "X-Auto-Refresh": "1" }, redirect: "error" });
    if (!answer.ok) throw new Error(answer.status);
    return answer.json();
  };
  const update = async () => {
    if (busy) return;
    busy = true;
    try {
      const anew = !cursor || (rows.size > MOST && !zoomed); // what a zoom has fetched stays while one looks at it
      take(await fetchCurve(anew ? "" : `?after=${cursor}`));
      if (!plots.loss) { $$("[data-waiting]").forEach((node) => node.remove()); draw(); }
      else {
        const d = data();
        for (const name of ["loss", "speed", "staleness"]) {
          const { min, max } = plots[name].scales.x;
          plots[name].setData(d[name], false);
          if (zoomed) plots[name].setScale("x", { min, max });
          else fit(plots[name], d[name][0]);
        }
        if (plots.loss.cursor.idx == null) legend(null);
      }
      box("loss").dataset.newest = cursor;
    } catch { // of a page that was refreshed before, the banner of site.js tells that the coordinator is away
      $$("[data-waiting]").forEach((node) => { node.textContent = "The curve did not come. The next refresh asks again."; });
    } finally { busy = false; }
  };
  const fit = (plot, x) => plot.setScale("x", { min: x[0], max: x.length > 1 ? x[x.length - 1] : x[0] + 1 });

  // Zooming in asks for every version of the range: what the overview had thinned comes back.
  let zooms = 0;
  const zoom = async (on) => {
    const mine = (zooms += 1);
    zoomed = on;
    $("[data-reset]").hidden = !on;
    box("loss").dataset.zoomed = on ? "yes" : "no";
    if (!on) {
      const d = data();
      for (const name of Object.keys(plots)) fit(plots[name], d[name][0]);
      say("");
      return;
    }
    await new Promise(requestAnimationFrame);
    if (mine !== zooms) return;
    const { min, max } = plots.loss.scales.x;
    say(`from ${xText(min)} to ${xText(max)}`);
    box("loss").dataset.min = min;
    box("loss").dataset.max = max;
    for (const name of ["speed", "staleness"]) plots[name].setScale("x", { min, max });
    if (total <= rows.size) return;
    await new Promise((rest) => setTimeout(rest, 150));
    if (mine !== zooms) return;
    const inside = sorted().filter((row) => xOf(row) >= min && xOf(row) <= max);
    if (inside.length < 2) return;
    try {
      const view = await fetchCurve(`?first=${inside[0].version}&last=${inside[inside.length - 1].version}`);
      ready = null;
      view.version.forEach((version, i) => rows.set(version, Object.fromEntries(COLUMNS.map((name) => [name, view[name][i]]))));
      const d = data();
      for (const name of Object.keys(plots)) {
        const seen = plots[name].scales.x; // one may have looked elsewhere meanwhile
        plots[name].setData(d[name], false);
        plots[name].setScale("x", { min: seen.min, max: seen.max });
      }
      legend(null);
    } catch { /* the overview stays */ }
  };

  // By keyboard: nearer, further, along. The range is clamped to the run; all of it is no zoom.
  const say = (text) => { $("[data-range]").textContent = text; };
  const look = (middle, width) => {
    const x = data().loss[0];
    const [first, last] = [x[0], x[x.length - 1]];
    if (!(last > first) || width >= last - first) { zoom(false); return; }
    const min = Math.min(Math.max(middle - width / 2, first), last - width);
    plots.loss.setScale("x", { min, max: min + width });
    zoom(true);
  };
  const drag = (u) => { // a finger that moves sideways moves a zoomed curve along; up and down stays the page's
    let from = null;
    u.over.addEventListener("pointerdown", (event) => {
      from = event.pointerType === "touch" && zoomed ? { at: event.clientX, ...u.scales.x } : null;
    });
    u.over.addEventListener("pointermove", (event) => {
      if (!from) return;
      const width = from.max - from.min;
      look((from.min + from.max) / 2 - ((event.clientX - from.at) / u.over.clientWidth) * width, width);
    });
    for (const name of ["pointerup", "pointercancel"]) u.over.addEventListener(name, () => { from = null; });
  };
  const LEAST = 1 / 2000; // of what is seen at first
  const keyed = (key) => {
    const { min, max } = plots.loss.scales.x;
    const x = data().loss[0];
    const [middle, width] = [(min + max) / 2, max - min];
    if (key === "+" || key === "=") look(middle, Math.max(width / 2, (x[x.length - 1] - x[0]) * LEAST));
    else if (key === "-") look(middle, width * 2);
    else if (key === "ArrowLeft") look(middle - width / 4, width);
    else if (key === "ArrowRight") look(middle + width / 4, width);
    else if (key === "Home") look(x[0], width);
    else if (key === "End") look(x[x.length - 1], width);
    else if (key === "0" || key === "Escape") zoom(false);
    else return false;
    return true;
  };
  box("loss").addEventListener("keydown", (event) => {
    if (!plots.loss || event.ctrlKey || event.metaKey || event.altKey) return;
    if (keyed(event.key)) event.preventDefault();
  });

  const press = (name, value) => $$(`[data-${name}]`).forEach((b) => b.setAttribute("aria-pressed", String(b.dataset[name] === value)));
  $("[data-curve-controls]").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.x) { axis = button.dataset.x; localStorage.setItem("bithaul.axis", axis); press("x", axis); }
    else if (button.dataset.scale) { scale = button.dataset.scale; localStorage.setItem("bithaul.scale", scale); press("scale", scale); }
    if (!plots.loss) return; // the curve is still on its way, and will come as it was asked for
    if ("reset" in button.dataset) { zoom(false); return; }
    if (button.dataset.zoom) { keyed(button.dataset.zoom); return; }
    const before = zoomed && !button.dataset.x ? { ...plots.loss.scales.x } : null;
    draw();
    if (before) for (const plot of Object.values(plots)) plot.setScale("x", { min: before.min, max: before.max });
    else zoom(false);
  });
  for (const name of ["loss", "speed", "staleness"]) box(name).addEventListener("dblclick", () => zoom(false));
  press("x", axis);
  press("scale", scale);

  new ResizeObserver(() => {
    for (const [name, plot] of Object.entries(plots)) plot.setSize({ width: box(name).clientWidth - 24, height: box(name).clientHeight - 16 });
  }).observe(box("loss"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    if (!plots.loss) return;
    const { min, max } = plots.loss.scales.x;
    draw();
    if (zoomed) for (const plot of Object.values(plots)) plot.setScale("x", { min, max });
  });
  document.addEventListener("bithaul:refresh", update);
  window.bithaul.plots = plots;
  update();
})();
