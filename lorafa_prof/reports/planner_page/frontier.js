// The frontier: which batch fits at which sequence length.

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
    const places = curve.points.map(([seq, bs]) => `${x(seq).toFixed(1)} ${y(bs).toFixed(1)}`);
    const hue = `curve-${i % DASHES.length}`;
    const style = `curve ${hue}${curve.chosen ? " chosen" : ""}`;
    const every = curve.points.filter(([, bs]) => Number.isInteger(Math.log2(bs)));
    root.append(
      svg("path", { d: `M${places.join("L")}`, class: style, "stroke-dasharray": DASHES[i % DASHES.length] || null }),
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
      const place = { x: at, y: box.bottom + 16, class: "tick", "text-anchor": "middle" };
      root.append(svg("text", place, short(2 ** power)));
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
