// Memory at the peak: stacked bars, one a method, against the card's memory.

const ROW_HEIGHT = 50;
const BARS_TOP = 26;
/** Pixels between the capacity's line and a bar's name. */
const CLEAR = 4;

/** Draw the bars into an element; a click on one chooses its method.
 *  rows: [{name, label, parts: [[part, bytes], ...], needed, fits, refused, chosen}] */
function drawBars(host, rows, device, looks, names, choose) {
  const width = Math.max(280, Math.round(host.clientWidth || 640));
  const bottom = BARS_TOP + rows.length * ROW_HEIGHT - 4;
  const largestNeed = Math.max(...rows.map((row) => row.needed ?? 0));
  const scale = (width - 2) / (Math.max(device.total_bytes, largestNeed) * 1.03);
  const root = svg("svg", { viewBox: `0 0 ${width} ${bottom + 30}`, class: "figure", role: "img",
    "aria-label": `Memory at the peak by method, against ${device.full_name}. The table below has the figures.` });
  const fills = patterns(root, looks);
  rows.forEach((row, i) => {
    const y = BARS_TOP + i * ROW_HEIGHT;
    const bar = svg("g", { class: "bar" }, svg("rect", { x: 0, y, width, height: ROW_HEIGHT - 4, class: "row" }));
    bar.append(...segments(row, y + 19, scale, fills, names));
    bar.addEventListener("click", () => choose(row.name));
    root.append(bar);
  });
  const labels = rows.map((row, i) => barName(row, BARS_TOP + i * ROW_HEIGHT + 13));
  root.append(...labels);
  drawSizes(root, width, bottom + 18, scale);
  host.replaceChildren(root);
  // Last, for how wide a text is only a page can say.
  root.append(...capacity(device, width, bottom, scale, labels.map((name) => name.getBBox())));
}

function segments(row, y, scale, fills, names) {
  let x = 1;
  const found = [];
  for (const [part, bytes] of row.parts.filter(([, size]) => size > 0)) {
    const width = bytes * scale;
    const title = svg("title", {}, `${row.label}, ${names[part]}: ${gib(bytes)} GiB (${count(bytes)} bytes)`);
    found.push(svg("rect", { x, y, width, height: 20, fill: fills[part], class: "segment" }, title));
    x += width;
  }
  if (row.chosen && !row.refused) {
    found.push(svg("rect", { x: 0.5, y: y - 2, width: Math.max(x, 4), height: 24, class: "outline" }));
  }
  return found;
}

function barName(row, y) {
  const size = row.refused ? "no prediction" : `${gib(row.needed)} GiB`;
  const verdict = row.fits ? "✓ fits" : "✕ does not fit";
  return svg("text", { x: 1, y, class: row.chosen ? "bar-name chosen" : "bar-name" }, row.label,
    svg("tspan", { dx: 10, class: "bar-size" }, size),
    svg("tspan", { dx: 10, class: row.fits ? "good" : "bad" }, row.refused ? "" : verdict));
}

/** The card's memory: a line across the bars, broken where it would go through a bar's name, with the card's name on the
 *  side that has room. `taken` is where the bars' names are, from the top down. */
function capacity(device, width, bottom, scale, taken) {
  const x = 1 + device.total_bytes * scale;
  const [at, anchor] = x > width / 2 ? [x + 1, "end"] : [x - 1, "start"];
  const name = `${plainName(device)}: ${gib(device.total_bytes)} GiB`;
  const inTheWay = taken.filter((box) => box.x - CLEAR < x && x < box.x + box.width + CLEAR);
  const starts = [16, ...inTheWay.map((box) => box.y + box.height)];
  const stops = [...inTheWay.map((box) => box.y), bottom];
  return [
    ...starts.map((y1, i) => svg("line", { x1: x, x2: x, y1, y2: stops[i], class: "capacity" })),
    svg("text", { x: at, y: 11, class: "capacity-name", "text-anchor": anchor }, name),
  ];
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
