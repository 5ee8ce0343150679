// Elements and figures. All text goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** A new element with attributes and children; a child that is no node becomes text. */
function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, String(value));
  }
  made.append(...children);
  return made;
}

const GIB = 2 ** 30;

// Made once: a formatter costs more than all that it formats.
const WHOLE = new Intl.NumberFormat("en-US");
const DECIMALS = [0, 1, 2].map((digits) =>
  new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }));

function gib(bytes, digits = 2) {
  const size = bytes / GIB;
  return bytes > 0 && size < 0.005 ? "<0.01" : DECIMALS[digits].format(size);
}

function count(number) {
  return WHOLE.format(number);
}

/** A card's name without its vendor's, where that is the usual one. */
function plainName(device) {
  return device.full_name.replace(/^NVIDIA (GeForce )?/, "");
}

/** The hatches of lorafa_prof/reports/figures.py: lines or dots over a colour, told apart without colour. */
const HATCHES = {
  "...": "M1.5 1.5h1v1h-1z M5.5 5.5h1v1h-1z",
  "///": "M-2 6L6 -2 M0 8L8 0 M2 10L10 2",
  "---": "M0 2H8 M0 6H8",
  xx: "M0 8L8 0 M0 0L8 8",
  "\\\\\\": "M-2 2L6 10 M0 0L8 8 M2 -2L10 6",
  "++": "M0 4H8 M4 0V8",
  oo: "M2 4a2 2 0 1 0 4 0a2 2 0 1 0 -4 0",
};

/** Fill patterns, one a part: {part: fill}. */
function patterns(root, looks) {
  const definitions = svg("defs");
  const fills = {};
  for (const [part, look] of Object.entries(looks)) {
    const id = `fill-${part}`;
    const dark = look.dark ? "#ffffff" : "#000000";
    const tile = svg("pattern", { id, width: 8, height: 8, patternUnits: "userSpaceOnUse" },
      svg("rect", { width: 8, height: 8, fill: look.color }));
    if (look.hatch) {
      tile.append(svg("path", { d: HATCHES[look.hatch], stroke: dark, "stroke-opacity": 0.45, "stroke-width": 0.8,
        fill: look.hatch === "..." ? dark : "none", "fill-opacity": 0.45 }));
    }
    definitions.append(tile);
    fills[part] = `url(#${id})`;
  }
  root.append(definitions);
  return fills;
}

/** Stacked bars, one a method, with the card's memory as a line; a click on a bar chooses its method.
 *  rows: [{name, label, parts: [[part, bytes]], needed, fits, refused, chosen}] */
function drawBars(host, rows, device, looks, names, choose) {
  const width = Math.max(280, Math.round(host.clientWidth || 640));
  const rowHeight = 50;
  const top = 26;
  const height = top + rows.length * rowHeight + 26;
  const largestNeed = Math.max(...rows.map((row) => row.needed ?? 0));
  const scale = (width - 2) / (Math.max(device.total_bytes, largestNeed) * 1.03);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "figure", role: "img",
    "aria-label": `Memory at the peak by method, against ${device.full_name}. The table below has the figures.` });
  const fills = patterns(root, looks);
  const labels = [];
  rows.forEach((row, i) => {
    const y = top + i * rowHeight;
    const size = row.refused ? "no prediction" : `${gib(row.needed)} GiB`;
    const verdict = row.refused ? "" : row.fits ? "✓ fits" : "✕ does not fit";
    labels.push(svg("text", { x: 1, y: y + 13, class: row.chosen ? "bar-name chosen" : "bar-name" }, row.label,
      svg("tspan", { dx: 10, class: "bar-size" }, size),
      svg("tspan", { dx: 10, class: row.fits ? "good" : "bad" }, verdict)));
    const group = svg("g", { class: "bar" }, svg("rect", { x: 0, y, width, height: rowHeight - 4, class: "row" }));
    group.addEventListener("click", () => choose(row.name));
    root.append(group);
    let x = 1;
    for (const [part, bytes] of row.parts) {
      const w = bytes * scale;
      if (w <= 0) continue;
      group.append(svg("rect", { x, y: y + 19, width: w, height: 20, fill: fills[part], class: "segment" },
        svg("title", {}, `${row.label}, ${names[part]}: ${gib(bytes)} GiB (${count(bytes)} bytes)`)));
      x += w;
    }
    if (row.chosen && !row.refused) root.append(svg("rect", { x: 0.5, y: y + 17, width: Math.max(x, 4), height: 24, class: "outline" }));
  });
  const limit = 1 + device.total_bytes * scale;
  const bottom = top + rows.length * rowHeight - 4;
  const label = `${plainName(device)}: ${gib(device.total_bytes)} GiB`;
  const left = limit > width / 2;
  root.append(
    svg("line", { x1: limit, x2: limit, y1: 16, y2: bottom, class: "capacity" }),
    svg("text", { x: left ? limit + 1 : limit - 1, y: 11, class: "capacity-name", "text-anchor": left ? "end" : "start" }, label),
  );
  root.append(...labels); // over the line, which breaks around them
  drawSizes(root, width, bottom + 18, scale);
  host.replaceChildren(root);
}

/** A scale of sizes under the bars. */
function drawSizes(root, width, y, scale) {
  const most = width / scale / GIB;
  const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
  const step = steps.find((size) => most / size <= width / 64) ?? most;
  for (let size = 0; size * GIB * scale <= width - 24; size += step) {
    const x = 1 + size * GIB * scale;
    root.append(
      svg("line", { x1: x, x2: x, y1: y - 15, y2: y - 11, class: "axis" }),
      svg("text", { x, y, class: "tick", "text-anchor": size ? "middle" : "start" }, size ? String(size) : "0 GiB"),
    );
  }
}

/** Marks of curves, told apart without colour. */
const MARKS = ["circle", "square", "diamond", "triangle", "cross"];
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "12 3 4 3"];

function mark(kind, x, y) {
  const shapes = {
    circle: `M${x - 4} ${y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z`,
    square: `M${x - 3.5} ${y - 3.5}h7v7h-7z`,
    diamond: `M${x} ${y - 5}l5 5l-5 5l-5 -5z`,
    triangle: `M${x} ${y - 5}l5 9h-10z`,
    cross: `M${x - 4} ${y - 1}h3v-3h2v3h3v2h-3v3h-2v-3h-3z`,
  };
  return shapes[kind];
}

/** The batch that fits against the sequence length, both in powers of two, a curve for each method.
 *  curves: [{points: [[seq, batch], ...], chosen}] */
function drawFrontier(host, curves, here) {
  const width = Math.max(280, Math.round(host.clientWidth || 640));
  const height = Math.round(Math.min(400, Math.max(260, width * 0.6)));
  const box = { left: 42, right: width - 20, top: 12, bottom: height - 40 };
  const all = curves.flatMap((curve) => curve.points);
  const seqs = [...all.map((point) => point[0]), here.seq];
  const xs = [Math.floor(Math.log2(Math.min(128, ...seqs))), Math.ceil(Math.log2(Math.max(2048, ...seqs)))];
  const ys = [0, Math.max(3, Math.ceil(Math.log2(Math.max(here.bs, 1, ...all.map((point) => point[1])))))];
  const x = (seq) => box.left + ((Math.log2(seq) - xs[0]) / (xs[1] - xs[0])) * (box.right - box.left);
  const y = (bs) => box.bottom - ((Math.log2(bs) - ys[0]) / (ys[1] - ys[0])) * (box.bottom - box.top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "figure", role: "img",
    "aria-label": "Batch that fits against sequence length, by method. The table below has the figures." });
  drawGrid(root, box, xs, ys, x, y);
  curves.forEach((curve, i) => {
    if (!curve.points.length) return;
    const path = curve.points.map(([seq, bs], j) => `${j ? "L" : "M"}${x(seq).toFixed(1)} ${y(bs).toFixed(1)}`).join("");
    const hue = `curve-${i % DASHES.length}`;
    const style = `curve ${hue}${curve.chosen ? " chosen" : ""}`;
    const every = curve.points.filter(([, bs]) => Number.isInteger(Math.log2(bs)));
    root.append(
      svg("path", { d: path, class: style, "stroke-dasharray": DASHES[i % DASHES.length] || null }),
      svg("path", { d: every.map(([seq, bs]) => mark(MARKS[i % MARKS.length], x(seq), y(bs))).join(""),
        class: `mark ${hue}` }),
    );
  });
  const [cx, cy] = [x(here.seq), y(here.bs)];
  root.append(
    svg("circle", { cx, cy, r: 9, class: `here ${here.state}` }), svg("circle", { cx, cy, r: 2.5, class: "here-dot" }),
  );
  host.replaceChildren(root);
}

function drawGrid(root, box, xs, ys, x, y) {
  const wide = box.right - box.left;
  const xStep = Math.ceil((xs[1] - xs[0]) / (wide / 48));
  for (let power = xs[0]; power <= xs[1]; power += 1) {
    const at = x(2 ** power);
    root.append(svg("line", { x1: at, x2: at, y1: box.top, y2: box.bottom, class: "grid" }));
    if ((power - xs[0]) % xStep === 0) {
      root.append(svg("text", { x: at, y: box.bottom + 16, class: "tick", "text-anchor": "middle" }, short(2 ** power)));
    }
  }
  const yStep = Math.ceil((ys[1] - ys[0]) / 8);
  for (let power = ys[0]; power <= ys[1]; power += 1) {
    const at = y(2 ** power);
    root.append(svg("line", { x1: box.left, x2: box.right, y1: at, y2: at, class: "grid" }));
    if ((power - ys[0]) % yStep === 0) {
      root.append(svg("text", { x: box.left - 6, y: at + 4, class: "tick", "text-anchor": "end" }, short(2 ** power)));
    }
  }
  root.append(
    svg("text", { x: (box.left + box.right) / 2, y: box.bottom + 34, class: "axis-name", "text-anchor": "middle" },
      "sequence length, tokens"),
    svg("text", { x: -(box.top + box.bottom) / 2, y: 11, class: "axis-name", "text-anchor": "middle",
      transform: "rotate(-90)" }, "batch"),
  );
}

/** 4096 as 4k, 131072 as 128k. */
function short(number) {
  if (number >= 2 ** 20) return `${number / 2 ** 20}M`;
  return number >= 1024 ? `${number / 1024}k` : String(number);
}
