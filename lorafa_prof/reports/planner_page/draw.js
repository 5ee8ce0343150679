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

/** The hatches of lorafa_prof/reports/figures/style.py: lines or dots over a colour, told apart without colour. */
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
