// What the controls say, kept in the address. An address may come from anyone: each value is taken only if it is one
// of those that the page offers, or a whole number within its limits, and nothing of it is ever made into markup.

/** The fields of a run, by their names in the address, which are the command line's. */
const FIELDS = {
  model: "model", method: "method", gpu: "gpu", bs: "bs", seq: "seq", rank: "rank", dtype: "dtype",
  "adapter-dtype": "adapter_dtype", amp: "amp", attn: "attn", checkpointing: "checkpointing",
};

/** The choices of every field that has some. */
function choicesOf(data) {
  return {
    model: data.models.map((model) => model.name),
    method: Object.keys(data.models[0].methods),
    gpu: data.devices.map((device) => device.name),
    ...Object.fromEntries(data.options),
  };
}

/** A whole number from 1 to the field's limit, or null. */
function wholeNumber(text, limit) {
  if (!/^[0-9]{1,10}$/.test(text)) return null;
  const number = Number(text);
  return number >= 1 && number <= limit ? number : null;
}

/** The value that a text stands for in a field, or null if the page has none such. */
function valueOf(field, text, data) {
  if (Object.hasOwn(data.engine.limits, field)) return wholeNumber(text, data.engine.limits[field]);
  const found = choicesOf(data)[field].find((choice) => textOf(choice) === text);
  return found === undefined ? null : found;
}

function textOf(value) {
  if (typeof value === "boolean") return value ? "1" : "0";
  return String(value);
}

/** The run that an address describes, and the names in it that were not understood. */
function runFromHash(hash, defaults, data) {
  const run = { ...defaults };
  const ignored = [];
  for (const [name, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    const field = Object.hasOwn(FIELDS, name) ? FIELDS[name] : null;
    const value = field === null ? null : valueOf(field, text, data);
    if (value === null) ignored.push(name.slice(0, 20));
    else run[field] = value;
  }
  return { run, ignored: ignored.slice(0, 5) };
}

function hashOf(run) {
  const pairs = Object.entries(FIELDS).map(([name, field]) => [name, textOf(run[field])]);
  return `#${new URLSearchParams(pairs)}`;
}

/** A word as a shell takes it: a model may be a path. */
function quoted(word) {
  return /^[\w.@%+=:,/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** The command that answers the same question, as pieces that belong together. */
function commandOf(run) {
  const words = [
    "lorafa-prof predict", `--model ${quoted(run.model)}`, `--method ${run.method}`, `--gpu ${quoted(run.gpu)}`,
    `--bs ${run.bs}`, `--seq ${run.seq}`,
  ];
  if (run.method !== "full") words.push(`--rank ${run.rank}`);
  if (run.dtype !== "bf16") words.push(`--dtype ${run.dtype}`);
  if (run.method !== "full" && run.adapter_dtype !== "auto") words.push(`--adapter-dtype ${run.adapter_dtype}`);
  if (run.amp) words.push("--amp");
  if (run.attn !== "sdpa") words.push(`--attn ${run.attn}`);
  if (run.checkpointing !== "none") words.push(`--checkpointing ${run.checkpointing}`);
  return words;
}
