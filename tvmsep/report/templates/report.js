"use strict";
(function () {
  const byId = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const narrow = () => window.innerWidth < 640;
  const TOP = 20;
  let data = JSON.parse(byId("data").textContent);

  // Plotly comes compressed: it is most of the page.
  async function loadPlotly() {
    const text = atob(byId("plotly").textContent);
    const bytes = new Uint8Array(text.length); // .from with a function takes 20 times as long
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const code = document.createElement("script");
    code.textContent = await new Response(stream).text();
    document.head.append(code);
    if (!window.Plotly) throw new Error("plotly.js did not load");
  }

  function draw(id, traces, layout) {
    const at = byId(id);
    if (!at || !window.Plotly) return;
    const fg = css("fg"), grid = css("grid");
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: css("line"), automargin: true, fixedrange: true };
    const full = Object.assign({
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: fg, family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 13 },
      margin: { l: 60, r: 16, t: 30, b: 60 }, hovermode: "closest", dragmode: false,
      legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom" },
      hoverlabel: { bgcolor: css("panel"), bordercolor: css("line"), font: { color: fg } },
    }, layout);
    full.xaxis = Object.assign({}, axis, layout.xaxis);
    full.yaxis = Object.assign({}, axis, layout.yaxis);
    for (const one of [full.xaxis, full.yaxis]) if (one.title) one.title = { text: one.title.text, standoff: 8 };
    Plotly.react(at, traces, full, { displayModeBar: false, responsive: true });
  }

  const clip = (text) => { const n = narrow() ? 20 : 44; return text.length > n ? text.slice(0, n - 1) + "…" : text; };
  const colours = () => [css("after"), css("third"), css("fourth"), css("before")];
  // Plotly reads a text as HTML of sorts: none of ours is.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");

  function drawNetwork() {
    const rows = data.networks;
    if (!rows.length) return;
    const edge = data.cut_s ? data.cut_s * 1e3 : null;
    const named = rows.map((r) => plain(clip(r.name)) + (data.threads.length > 1 ? ", " + r.threads + "t" : ""));
    const last = rows.length - 1;
    draw("network-plot", [{
      type: "bar", orientation: "h", x: rows.map((r) => r.seconds * 1e3), y: rows.map((_, i) => last - i),
      marker: { color: rows.map((r) => css(r.ours ? "after" : "before")) },
      hoverinfo: "text",
      hovertext: rows.map((r, i) => named[i] + ": " + (r.seconds * 1e3).toFixed(3) + " ms"),
    }], { xaxis: Object.assign({ title: { text: "ms" } }, edge ? { range: [0, edge] } : { rangemode: "tozero" }), bargap: 0.25, margin: { l: 60, r: 56, t: 10, b: 60 },
      annotations: rows.map((r, i) => ({ x: edge ? Math.min(r.seconds * 1e3, edge) : r.seconds * 1e3, y: last - i, xanchor: "left", showarrow: false, xshift: 3, text: (r.seconds * 1e3).toFixed(r.seconds < 0.1 ? 2 : 0) })),
      yaxis: { tickvals: rows.map((_, i) => last - i), ticktext: named } });
  }

  function shown() {
    return [...document.querySelectorAll("#tasks tbody tr")].filter((r) => !r.hidden)
      .map((r) => data.tasks[r.dataset.id]);
  }

  function drawLayers() {
    const weight = (t) => Math.max(1, t.runs) * (t.best_s || 0);
    const rows = shown().filter((t) => t.best_s).sort((a, b) => weight(b) - weight(a)).slice(0, TOP).reverse();
    const many = new Set(rows.map((t) => t.threads)).size > 1;
    const names = rows.map((t) => plain(clip(t.label)) + (many ? ", " + t.threads + "t" : ""));
    const bar = (name, colour, value) => ({
      type: "bar", orientation: "h", name: name, y: rows.map((_, i) => i), marker: { color: css(colour) },
      x: rows.map((t) => (value(t) === null ? null : Math.max(1, t.runs) * value(t) * 1e6)), hoverinfo: "text",
      hovertext: rows.map((t) => plain(t.label) + "<br>" + name + ": " + (value(t) === null ? "not measured"
        : (value(t) * 1e6).toFixed(1) + " µs" + (t.runs > 1 ? " × " + t.runs : "")) + "<br>" + plain(t.config)),
    });
    draw("layers-plot", [bar("after", "after", (t) => t.best_s), bar("before", "before", (t) => t.before_s)], {
      barmode: "group", bargap: 0.3, xaxis: { title: { text: "µs" }, rangemode: "tozero" },
      yaxis: { tickvals: rows.map((_, i) => i), ticktext: names }, legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", traceorder: "reversed" } });
  }

  function drawRoof() {
    const points = data.roof_points.filter((p) => p.flops_per_s > 0);
    if (!points.length) return;
    const xs = points.map((p) => p.intensity);
    const low = Math.min(...xs) / 2, high = Math.max(...xs) * 2;
    const groups = [...new Set(points.map((p) => p.group))], palette = colours();
    const traces = groups.map((g, i) => {
      const mine = points.filter((p) => p.group === g);
      return { type: "scatter", mode: "markers", name: plain(g), x: mine.map((p) => p.intensity),
        y: mine.map((p) => p.flops_per_s / 1e9), hoverinfo: "text",
        marker: { color: palette[i % palette.length], size: 10, opacity: 0.85, line: { width: 2 },
          symbol: mine.map((p) => ["circle", "square", "diamond", "cross", "x", "triangle-up"][i % 6] + (data.threads.length > 1 && p.threads === data.threads[0] ? "-open" : "")) },
        hovertext: mine.map((p) => plain(p.label) + ", " + p.threads + "t<br>" + (p.flops_per_s / 1e9).toFixed(1) + " GFLOP/s, "
          + p.intensity.toFixed(1) + " FLOP/byte" + (p.bound ? "<br>" + Math.round(p.share * 100) + " % of its bound: " + plain(p.bound) : "")) };
    });
    for (const roof of data.roofs) {
      const bend = roof.peak / roof.rate;
      const at = [low, ...(roof.rate && bend > low && bend < high ? [bend] : []), high];
      traces.push({ type: "scatter", mode: "lines", name: plain(roof.name), x: at, hoverinfo: "name",
        y: at.map((x) => Math.min(roof.peak, roof.rate ? roof.rate * x : Infinity) / 1e9),
        line: { color: css("muted"), width: 1.5, dash: roof.dash } });
    }
    const log = (title) => ({ type: "log", title: { text: title }, dtick: "D2", tickformat: "~g" });
    draw("roofline-plot", traces, { xaxis: log("FLOP/byte"), yaxis: log("GFLOP/s") });
  }

  function curves() {
    const chosen = byId("curve").value;
    if (chosen === "") return data.progress.map((n) => ({ name: n.threads + " thread" + (n.threads > 1 ? "s" : ""), threads: n.threads, curve: n.curve }));
    const task = data.tasks[chosen];
    return [{ name: task.label, threads: task.threads, curve: task.curve }];
  }

  function drawCurves() {
    if (!byId("curve")) return;
    const found = curves().filter((c) => c.curve.trials.length), palette = colours();
    const traces = (key, scale) => found.map((c, i) => ({
      type: "scatter", mode: "lines", name: plain(c.name), line: { shape: "hv", color: palette[i % 4], width: 2, dash: ["solid", "dash", "dot"][i % 3] },
      x: c.curve[key].map((v) => v / scale), y: c.curve.best_s.map((v) => v * 1e6), hovertemplate: "%{y:.1f} µs" }));
    const empty = found.length ? [] : [{ text: "no curve yet: some task has no time", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }];
    const y = { title: { text: "µs" }, tickformat: "~r" };
    draw("trials-plot", traces("trials", 1), { annotations: empty, showlegend: true, xaxis: { title: { text: "trials" } }, yaxis: y });
    draw("wall-plot", traces("wall_s", 60), { annotations: empty, showlegend: true, xaxis: { title: { text: "minutes" } }, yaxis: y });
    const body = document.querySelector("#curve-table tbody");
    body.replaceChildren(...found.flatMap((c) => c.curve.trials.map((n, i) => {
      const row = document.createElement("tr");
      for (const text of [c.threads, n, (c.curve.wall_s[i] / 60).toFixed(1), (c.curve.best_s[i] * 1e6).toFixed(1)]) {
        const cell = row.insertCell(); cell.className = "n"; cell.textContent = text;
      }
      return row;
    })));
  }

  function drawFailures() {
    if (!data.failures.length) return;
    const sums = new Map();
    for (const f of data.failures) sums.set(f.failure, (sums.get(f.failure) || 0) + f.count);
    const rows = [...sums].sort((a, b) => a[1] - b[1]);
    draw("failures-plot", [{ type: "bar", orientation: "h", x: rows.map((r) => r[1]), y: rows.map((r) => plain(r[0])),
      marker: { color: css("third") }, text: rows.map((r) => String(r[1])), insidetextfont: { color: css("bg") }, hoverinfo: "x" }],
      { xaxis: { title: { text: "trials" }, rangemode: "tozero" }, yaxis: {} });
  }

  function drawKnobs() {
    const select = byId("knob");
    if (!select) return;
    const k = data.knobs[select.value];
    document.querySelectorAll(".knob-table").forEach((t) => { t.hidden = t.id !== "knob-" + select.value; });
    const xs = k.tasks.map((_, i) => i), last = k.rows.length - 1;
    const roomy = k.tasks.length <= 12 && !narrow();
    draw("knobs-plot", [{ type: "heatmap", x: xs, y: k.rows.map((_, i) => last - i), z: k.rows.map((r) => r[3].map((c) => (c === null ? null : c * 100))),
      colorscale: [[0, css("heat0")], [1, css("heat1")]], zmin: 70, zmax: 100, xgap: 1, ygap: 1, hoverongaps: false, hoverinfo: "text",
      colorbar: { title: { text: "%" }, thickness: 12, outlinewidth: 0, tickfont: { size: 11 } },
      texttemplate: roomy ? "%{z:.0f}" : "",
      text: k.rows.map((r) => r[3].map((c, i) => plain(k.tasks[i]) + "<br>" + plain(r[0]) + " = " + plain(r[1]) + ": " + (c === null ? "" : Math.round(c * 100) + " %"))) }], {
      xaxis: { tickvals: xs, ticktext: k.tasks.map((t, i) => (narrow() ? i + 1 : plain(clip(t.replace(k.template + " ", ""))))), tickangle: narrow() ? 0 : -60, showgrid: false, tickfont: { size: 11 } },
      yaxis: { tickvals: k.rows.map((_, i) => last - i), ticktext: k.rows.map((r) => plain(r[0] + " = " + r[1])), showgrid: false, tickfont: { size: 11 } },
      margin: { l: 60, r: 8, t: 12, b: 60 } });
  }

  function drawAll() { drawNetwork(); drawLayers(); drawRoof(); drawCurves(); drawFailures(); drawKnobs(); }

  // Tables

  function sort(head, direction) {
    const row = head.parentElement, body = head.closest("table").tBodies[0];
    const at = [...row.cells].indexOf(head), number = head.dataset.kind === "number";
    for (const other of row.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const value = (r) => { const c = r.cells[at]; if (!number) return c.textContent; return c.dataset.v === "" ? null : Number(c.dataset.v); };
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (x === null || y === null) return (x === null) - (y === null); // empty cells last, either way
      return sign * (number ? x - y : x.localeCompare(y, "en", { numeric: true }));
    };
    body.append(...[...body.rows].sort(order));
  }

  function filter() {
    const rows = document.querySelectorAll("#tasks tbody tr");
    if (!byId("filter-text")) return;
    const text = byId("filter-text").value.toLowerCase(), threads = byId("filter-threads").value, template = byId("filter-template").value;
    let count = 0;
    for (const r of rows) {
      r.hidden = !(r.textContent.toLowerCase().includes(text) && (!threads || r.dataset.threads === threads) && (!template || r.dataset.template === template));
      count += !r.hidden;
    }
    byId("filter-count").textContent = count + " of " + rows.length + " shown";
  }

  function fillCurves() {
    const select = byId("curve");
    if (!select) return;
    const option = (value, text) => { const o = document.createElement("option"); o.value = value; o.textContent = text; return o; };
    const rest = data.order.map((id) => option(id, data.tasks[id].label + ", " + data.tasks[id].threads + "t"));
    select.replaceChildren(option("", data.counted ? "the network" : "the sum of all tasks"), ...rest);
  }

  const main = byId("content");
  main.addEventListener("click", (event) => {
    const head = event.target.closest("table.sortable thead th[data-kind]");
    if (head && event.target.closest("button")) sort(head, head.getAttribute("aria-sort") === "descending" ? "ascending" : head.dataset.kind === "text" && !head.hasAttribute("aria-sort") ? "ascending" : "descending");
  });
  main.addEventListener("submit", (event) => event.preventDefault());
  main.addEventListener("input", (event) => {
    if (event.target.id.startsWith("filter-")) { filter(); drawLayers(); }
    if (event.target.id === "curve") drawCurves();
    if (event.target.id === "knob") drawKnobs();
  });

  // A page that is served while the log grows asks for news, and keeps what the reader has chosen.
  const live = Number(document.documentElement.dataset.live || 0);
  let tag = "";
  function refresh(html) {
    const chosen = [...main.querySelectorAll("input,select")].map((e) => [e.id, e.value]);
    const sorted = [...main.querySelectorAll("table.sortable")].map((t) => { const h = t.querySelector("th[aria-sort]"); return h && [h.cellIndex, h.getAttribute("aria-sort")]; });
    const open = [...main.querySelectorAll("details")].map((d) => d.open);
    const focused = document.activeElement && document.activeElement.id, scroll = window.scrollY;
    if (window.Plotly) main.querySelectorAll(".plot").forEach((p) => Plotly.purge(p));
    main.innerHTML = html;
    data = JSON.parse(byId("data").textContent);
    fillCurves();
    for (const [id, value] of chosen) { const e = byId(id); if (e && (e.tagName === "INPUT" || [...e.options].some((o) => o.value === value))) e.value = value; }
    main.querySelectorAll("table.sortable").forEach((t, i) => { if (sorted[i]) { const h = t.tHead.rows[0].cells[sorted[i][0]]; if (h && h.dataset.kind) sort(h, sorted[i][1]); } });
    main.querySelectorAll("details").forEach((d, i) => { d.open = Boolean(open[i]); });
    filter(); drawAll();
    if (focused && byId(focused)) byId(focused).focus({ preventScroll: true });
    window.scrollTo(0, scroll);
  }
  async function poll() {
    if (!document.hidden) {
      try {
        const answer = await fetch("main", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
        if (answer.status === 200) {
          const next = answer.headers.get("ETag"), html = await answer.text();
          if (next !== tag) { tag = next; refresh(html); }
          byId("state").textContent = data.subtitle;
        } else if (answer.status !== 304) {
          byId("state").textContent = await answer.text();
        }
      } catch (error) {
        byId("state").textContent = "tvmsep report has ended: the page shows what it last knew";
      }
    }
    setTimeout(poll, live * 1000);
  }

  fillCurves();
  filter();
  loadPlotly().then(() => {
    drawAll();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    for (const name of ["beforeprint", "afterprint"]) window.addEventListener(name, () => setTimeout(drawAll, 0));
    let width = window.innerWidth;
    window.addEventListener("resize", () => { if (width !== window.innerWidth) { width = window.innerWidth; drawAll(); } });
    document.documentElement.dataset.drawn = "yes";
  }).catch(() => {
    document.querySelectorAll(".plot").forEach((p) => { p.textContent = "This browser cannot draw the figure; its numbers are in the table."; });
    document.documentElement.dataset.drawn = "no";
  });
  if (live) setTimeout(poll, live * 1000);
})();
