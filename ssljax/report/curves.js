// Draws the curves of a report with uPlot, from the JSON that ssljax/report/curves.py makes.
(() => {
  "use strict";
  const page = JSON.parse(document.getElementById("curves").textContent);
  const log = document.getElementById("log");
  const smoothing = document.getElementById("smoothing");
  const DASHES = [[7, 4], [2, 3], [8, 3, 2, 3], [14, 3], [1, 5]];
  const COLORS = 8; // of the palette; further lines are dashed

  // A value for readers: 5 digits, large numbers as 1.2M, small ones as 1.2e-5.
  const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
  function text(value, unit, digits = unit ? 4 : 5) {
    if (value == null) return "–";
    const size = Math.abs(value), thousands = size >= 1e5 ? Math.min(Math.floor(Math.log10(size) / 3), 6) : 0;
    const scaled = Number((value / 1000 ** thousands).toPrecision(digits));
    const number = size > 0 && size < 1e-3 ? scaled.toExponential() : String(scaled) + " kMGTPE"[thousands].trim();
    return unit ? `${number} ${unit}` : number;
  }

  // Exponential moving average whose weights add up to 1 from the first value on; gaps stay gaps.
  function smoothed(values, weight) {
    let sum = 0, total = 0;
    return values.map(value => {
      if (value == null) return value;
      sum = weight * sum + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return sum / total;
    });
  }

  function css(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // Number of the nearest point that a line has, if it has none at the step below the cursor.
  function nearest(plot, line, at) {
    const values = plot.data[line];
    for (let distance = 0; distance < values.length; distance++) {
      if (values[at - distance] !== undefined) return at - distance;
      if (values[at + distance] !== undefined) return at + distance;
    }
    return at;
  }

  // The data, series and bands of a panel: each curve, below it its faint original if it is smoothed, and levels.
  function content(panel, positive, weight) {
    const drawn = value => (positive && value <= 0 ? null : value);
    const tables = [], bands = [], series = [{label: "step", value: (plot, step) => (step == null ? "–" : whole.format(step))}];
    for (const line of panel.lines) {
      const values = line.values.map(drawn), color = css(`--line-${line.color % COLORS}`);
      const dash = line.color < COLORS ? undefined : DASHES[Math.floor(line.color / COLORS - 1) % DASHES.length];
      const shared = {label: line.label, stroke: color, dash};
      if (weight) {
        series.push({...shared, alpha: 0.45, width: 1, class: "faint", points: {show: false}});
        series.push({...shared, width: 2, points: {show: false}, value: (plot, value, i, at) =>
          at == null ? "–" : `${text(plot.data[i - 1][at], panel.unit)} (smoothed ${text(value, panel.unit)})`});
        tables.push([page.steps[line.steps], values, smoothed(values, weight)]);
      } else {
        series.push({...shared, width: 1.6, points: {fill: css("--back")}, value: (plot, value) => text(value, panel.unit)});
        tables.push([page.steps[line.steps], values]);
        if (line.low) { // the band of a mean, between two lines that are not drawn
          const edge = {label: line.label, width: 0, class: "faint", points: {show: false}};
          bands.push({series: [series.length + 1, series.length], fill: color + "33"});
          series.push({...edge}, {...edge});
          tables[tables.length - 1].push(line.low.map(drawn), line.high.map(drawn));
        }
      }
    }
    const data = uPlot.join(tables);
    panel.levels.forEach((level, i) => {
      const color = css(`--line-${level.color % COLORS}`);
      series.push({label: level.label, stroke: color, width: 1.4, dash: DASHES[i % DASHES.length],
        points: {show: false}, value: () => text(level.value, panel.unit)});
      data.push(data[0].map(() => drawn(level.value)));
    });
    return {data, series, bands};
  }

  function size(place) {
    const width = place.clientWidth;
    return {width, height: Math.round(Math.min(320, Math.max(210, 0.6 * width)))};
  }

  function options(panel, place, series, bands, positive, hidden) {
    const axis = {stroke: css("--text"), grid: {stroke: css("--grid"), width: 1}, ticks: {stroke: css("--grid"), size: 4}};
    const wide = values => 16 + 7 * Math.max(4, ...(values || []).map(value => (value || "").length));
    return {
      ...size(place),
      bands,
      series: series.map(one => ({...one, show: !hidden.has(one.label)})),
      scales: {x: {time: false}, y: positive ? {distr: 3, range: (plot, low, high) => uPlot.rangeLog(low, high, 10, false)} : {}},
      axes: [
        {...axis, size: 34, space: 72, values: (plot, steps) => steps.map(x => (Number.isInteger(x) ? whole.format(x) : ""))},
        {...axis, size: (plot, values) => wide(values),
          values: (plot, values) => values.map(y => (y == null ? "" : text(y, panel.unit, 7)))},
      ],
      cursor: {sync: {key: "steps", scales: ["x", null]}, drag: {x: true, y: false, dist: 5}, dataIdx: nearest,
        points: {size: 7, fill: (plot, i) => series[i].stroke}},
      hooks: {setSeries: [(plot, i, change) => {
        if (i == null || change.show === undefined) return;
        const label = plot.series[i].label;
        hidden[change.show ? "delete" : "add"](label);
        plot.series.forEach((other, j) => { // the faint original of a smoothed line
          if (other.label === label && other.show !== change.show) plot.setSeries(j, {show: change.show}, true);
        });
      }]},
    };
  }

  // A panel: its heading, its place, and a function that draws it anew.
  function make(panel, parent) {
    const box = parent.appendChild(document.createElement("div"));
    box.className = "panel";
    box.appendChild(document.createElement("h3")).textContent = panel.title;
    const place = box.appendChild(document.createElement("div"));
    const hidden = new Set();
    let plot = null;
    function draw() {
      const {min, max} = plot ? plot.scales.x : {};
      const positive = log.checked && panel.lines.some(line => line.values.some(value => value > 0));
      const {data, series, bands} = content(panel, positive, Number(smoothing.value));
      if (plot) plot.destroy();
      plot = new uPlot(options(panel, place, series, bands, positive, hidden), data, place);
      if (min != null) plot.setScale("x", {min, max});
    }
    new ResizeObserver(() => {
      if (plot && place.clientWidth && place.clientWidth !== plot.width) plot.setSize(size(place));
    }).observe(place);
    return draw;
  }

  const all = page.sections.flatMap((panels, i) => {
    const parent = document.querySelector(`[data-section="${i}"]`);
    return panels.map(panel => make(panel, parent));
  });
  let asked = false;
  function redraw() {
    document.getElementById("weight").textContent = Number(smoothing.value) ? smoothing.value : "off";
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      all.forEach(draw => draw());
    });
  }
  document.getElementById("controls").hidden = false;
  log.addEventListener("change", redraw);
  smoothing.addEventListener("input", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  all.forEach(draw => draw());
})();
