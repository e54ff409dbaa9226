(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const tabs = all("[role=tab]");
  const panels = all("[role=tabpanel]");
  const narrow = matchMedia("(max-width: 60rem)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)").matches;

  // Tabs: the address names the section, arrows move between them.
  const show = (name, moves = false) => {
    const number = Math.max(0, panels.findIndex((panel) => panel.dataset.name === name));
    panels.forEach((panel, i) => { panel.hidden = i !== number; });
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === number));
      tab.tabIndex = i === number ? 0 : -1;
    });
    if (moves) tabs[number].focus();
    if (narrow.matches) tabs[number].scrollIntoView({ block: "nearest", inline: "center" });
    dispatchEvent(new Event("resize"));
  };
  const go = (name, moves) => {
    history.replaceState(null, "", `#${name}`);
    show(name, moves);
  };
  const list = document.querySelector("[role=tablist]");
  const orient = () => list.setAttribute("aria-orientation", narrow.matches ? "horizontal" : "vertical");
  orient();
  narrow.addEventListener("change", orient);
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => { go(panels[i].dataset.name); scrollTo({ top: 0 }); });
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const next = { ArrowDown: i + 1, ArrowRight: i + 1, ArrowUp: i - 1, ArrowLeft: i - 1, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      go(panels[(next + tabs.length) % tabs.length].dataset.name, true);
    });
  });
  const ofAddress = () => show(decodeURIComponent(location.hash.slice(1)));
  addEventListener("hashchange", ofAddress);

  // Tables: a click on a column's name sorts by it; numbers before texts, empty cells last.
  const orderOf = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.order ?? "";
    const number = text === "" ? NaN : Number(text);
    return Number.isNaN(number) ? [text === "" || text === "nan" ? 2 : 1, text] : [0, number];
  };
  const compare = (a, b, sign) => {
    if (a[0] !== b[0]) return a[0] - b[0];
    return sign * (a[0] === 0 ? a[1] - b[1] : String(a[1]).localeCompare(String(b[1])));
  };
  all("th button").forEach((button) => button.addEventListener("click", () => {
    const head = button.parentElement;
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const falls = head.getAttribute("aria-sort") === "ascending";
    all("th", head.parentElement).forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => [orderOf(row, column), row]);
    rows.sort((a, b) => compare(a[0], b[0], falls ? -1 : 1));
    body.append(...rows.map(([, row]) => row));
  }));

  // Choices: those with the same label and the same options follow each other.
  const optionsOf = (choice) => all(":scope > .option", choice);
  all(".choice > label > select").forEach((select) => select.addEventListener("change", () => {
    const label = select.closest(".choice").dataset.label;
    const name = select.selectedOptions[0].text;
    all(".choice").filter((choice) => choice.dataset.label === label).forEach((choice) => {
      const other = choice.querySelector(":scope > label > select");
      const number = [...other.options].findIndex((option) => option.text === name);
      if (number < 0) return;
      other.selectedIndex = number;
      optionsOf(choice).forEach((option, i) => { option.hidden = i !== number; });
    });
  }));

  // Plots: drawn when they are first seen, in the colours of the page's style.
  const ARRAYS = { f8: Float64Array, f4: Float32Array, i4: Int32Array, i2: Int16Array, i1: Int8Array, u4: Uint32Array,
    u2: Uint16Array, u1: Uint8Array };
  const numbers = (values) => {
    if (!values || !values.bdata) return values;
    const bytes = Uint8Array.from(atob(values.bdata), (character) => character.charCodeAt(0));
    return new ARRAYS[values.dtype](bytes.buffer);
  };
  const coloured = (value, style) => {
    if (typeof value === "string") {
      return value.startsWith("var(") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
    }
    if (Array.isArray(value)) return value.map((inner) => coloured(inner, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, coloured(inner, style)]));
    }
    return value;
  };
  const smoothed = (values, weight) => {
    let sum = 0, share = 0;
    return Array.from(values, (value) => {
      if (value === null || Number.isNaN(value)) return null;
      sum = weight * sum + (1 - weight) * value;
      share = weight * share + (1 - weight);
      return sum / share;
    });
  };
  const withSmoothLines = (traces, weight) => traces.flatMap((trace) => {
    if (!trace.meta?.smooth || !weight) return [trace];
    const pale = { ...trace, opacity: 0.35, showlegend: false, hoverinfo: "skip", line: { ...trace.line, width: 1 } };
    return [pale, { ...trace, y: smoothed(numbers(trace.y), weight) }];
  });
  const AXIS = (style) => ({
    gridcolor: style.getPropertyValue("--grid").trim(), linecolor: style.getPropertyValue("--line").trim(),
    zerolinecolor: style.getPropertyValue("--line").trim(), zerolinewidth: 1, automargin: true, exponentformat: "e", ticks: "",
    tickfont: { color: style.getPropertyValue("--quiet").trim() },
  });
  const merged = (base, own) => {
    const result = { ...base };
    for (const [key, value] of Object.entries(own ?? {})) {
      const isObject = value && typeof value === "object" && !Array.isArray(value);
      result[key] = isObject && result[key] && typeof result[key] === "object" ? merged(result[key], value) : value;
    }
    return result;
  };
  // Names beside bars get at most a part of a narrow plot.
  const shortNames = (traces, width) => {
    const most = Math.max(12, Math.floor(width / 18));
    const names = traces.flatMap((trace) => Array.isArray(trace.y) ? trace.y : []);
    const long = names.filter((name) => typeof name === "string" && name.length > most);
    return Object.fromEntries(long.map((name) => [name, `${name.slice(0, most)}\u2026`]));
  };
  const layoutOf = (own, style) => {
    const text = style.getPropertyValue("--text").trim();
    const card = style.getPropertyValue("--card").trim();
    const base = {
      autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
      margin: { l: 52, r: 12, t: 8, b: 42 }, hovermode: "closest",
      hoverlabel: { bgcolor: card, bordercolor: style.getPropertyValue("--line").trim(), font: { color: text } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", xanchor: "left" },
      dragmode: coarse ? false : "zoom",
    };
    const axes = Object.keys(own).filter((key) => /^[xy]axis\d*$/.test(key));
    new Set(["xaxis", "yaxis", ...axes]).forEach((axis) => { base[axis] = AXIS(style); });
    return merged(base, own);
  };
  // Fingers do not hover: the buttons of a plot would always lie on it.
  const CONFIG = {
    responsive: true, displaylogo: false, displayModeBar: coarse ? false : "hover",
    modeBarButtonsToRemove: ["lasso2d", "select2d"],
  };
  // plotly.js stands in the page as text: reading its 5 MB takes a part of a second, and tabs work before that.
  const loadPlotly = () => {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
    performance.mark("plots");
  };
  const draw = (figure) => {
    loadPlotly();
    const style = getComputedStyle(document.documentElement);
    const { data, layout } = coloured(JSON.parse(figure.querySelector("script").textContent), style);
    const slider = figure.closest("[role=tabpanel]").querySelector(".smoothing input");
    const traces = withSmoothLines(data, slider ? Number(slider.value) : 0);
    const canvas = figure.querySelector(".canvas");
    const full = layoutOf(layout, style);
    if (full.yaxis.type === "category") full.yaxis.labelalias = shortNames(data, canvas.clientWidth);
    window.Plotly.react(canvas, traces, full, CONFIG);
    figure.dataset.drawn = "yes";
  };
  const figures = all("figure.plot");
  const drawn = () => figures.filter((figure) => figure.dataset.drawn);
  dark.addEventListener("change", () => drawn().forEach(draw));
  all(".smoothing input").forEach((slider) => slider.addEventListener("input", () => {
    slider.parentElement.querySelector("output").textContent = Number(slider.value).toFixed(2);
    drawn().filter((figure) => slider.closest("[role=tabpanel]").contains(figure)).forEach(draw);
  }));
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    seen.unobserve(entry.target);
    draw(entry.target);
  }), { rootMargin: "300px" });
  const later = window.requestIdleCallback ?? ((run) => setTimeout(run, 200));
  addEventListener("load", () => {
    if (!figures.length) return;
    figures.forEach((figure) => seen.observe(figure));
    later(loadPlotly, { timeout: 1000 });
  });
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    figures.forEach(draw);
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    figures.forEach(draw);
  });

  ofAddress();
  performance.mark("interactive");
})();
