// The page: controls to state, state to figures.

/** Batches, sequence lengths and ranks that the sliders stop at. */
const STOPS = {
  bs: [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512],
  seq: [128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536,
    98304, 131072],
  rank: [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
};

/** The shortest sequence of the frontier. */
const SHORTEST = 128;

const byId = (id) => document.getElementById(id);

class Planner {
  constructor(document_) {
    this.data = document_.plans;
    this.words = document_.words;
    this.engine = new Engine(this.data);
    this.choices = choicesOf(this.data);
    this.defaults = document_.defaults;
    this.readAddress();
    this.buildControls();
    window.addEventListener("hashchange", () => this.readAddress() && this.render());
    let waiting = 0;
    window.addEventListener("resize", () => {
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(() => this.drawFigures());
    });
    window.addEventListener("beforeprint", () => this.drawFigures());
    this.render();
  }

  /** Take the state from the address; what it has that the page does not know is said. */
  readAddress() {
    const { run, ignored } = runFromHash(window.location.hash, this.defaults, this.data);
    this.run = run;
    const said = `Parts of the address were not understood (${ignored.join(", ")}); the defaults stand in for them.`;
    byId("notice").textContent = ignored.length ? said : "";
    byId("notice").hidden = !ignored.length;
    return true;
  }

  set(field, value) {
    this.change({ [field]: value });
  }

  change(fields) {
    this.run = { ...this.run, ...fields };
    byId("notice").hidden = true;
    history.replaceState(null, "", hashOf(this.run));
    this.render();
  }

  // -- controls ------------------------------------------------------------------------------------------------------

  buildControls() {
    const named = {
      model: (name) => name,
      method: (name) => this.words.methods[name],
      gpu: (name) => {
        const device = this.engine.devices.get(name);
        return `${gib(device.total_bytes, 1)} GiB, ${plainName(device)}`;
      },
      adapter_dtype: (name) => (name === "auto" ? "auto: fp32" : name),
      amp: (on) => (on ? "bf16" : "off"),
      checkpointing: (name) => (name === "full" ? "every layer" : "off"),
    };
    for (const [field, values] of Object.entries(this.choices)) {
      const select = byId(field);
      const show = named[field] ?? String;
      select.replaceChildren(...values.map((value) => element("option", { value: textOf(value) }, show(value))));
      select.addEventListener("change", () => this.set(field, valueOf(field, select.value, this.data)));
    }
    for (const field of Object.keys(STOPS)) this.buildNumber(field);
    byId("exact").addEventListener("change", () => this.showTable());
    byId("copy").addEventListener("click", () => this.copy());
  }

  buildNumber(field) {
    const [number, slider] = [byId(field), byId(`${field}-slider`)];
    number.max = this.data.engine.limits[field];
    slider.max = STOPS[field].length - 1;
    slider.addEventListener("input", () => this.set(field, STOPS[field][Number(slider.value)]));
    number.addEventListener("input", () => {
      const value = wholeNumber(number.value.trim(), this.data.engine.limits[field]);
      const error = byId(`${field}-error`);
      error.hidden = value !== null;
      error.textContent = value === null ? `A whole number from 1 to ${count(this.data.engine.limits[field])}.` : "";
      number.setAttribute("aria-invalid", String(value === null));
      if (value !== null) this.set(field, value);
    });
  }

  showControls() {
    for (const field of Object.keys(this.choices)) byId(field).value = textOf(this.run[field]);
    for (const [field, stops] of Object.entries(STOPS)) {
      const [number, slider] = [byId(field), byId(`${field}-slider`)];
      if (wholeNumber(number.value.trim(), this.data.engine.limits[field]) !== this.run[field]) {
        number.value = String(this.run[field]);
        number.setAttribute("aria-invalid", "false");
        byId(`${field}-error`).hidden = true;
      }
      const above = stops.findIndex((stop) => stop > this.run[field]);
      slider.value = String(above === -1 ? stops.length - 1 : Math.max(0, above - 1));
      slider.setAttribute("aria-valuetext", count(this.run[field]));
    }
    const full = this.run.method === "full";
    for (const id of ["rank", "rank-slider", "adapter_dtype"]) byId(id).disabled = full;
  }

  async copy() {
    const [code, button] = [byId("command"), byId("copy")];
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = "Selected";
      return;
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  // -- what is shown -------------------------------------------------------------------------------------------------

  render() {
    this.showControls();
    this.answers = new Map();
    for (const method of this.choices.method) this.answers.set(method, this.engine.evaluate({ ...this.run, method }));
    this.device = this.engine.devices.get(this.run.gpu);
    this.showVerdict();
    this.showAdvice();
    this.showTable();
    this.showFrontierTable();
    this.drawFigures();
    this.showRemarks();
    const pieces = commandOf(this.run).map((piece) => element("span", {}, piece));
    byId("command").replaceChildren(...pieces.flatMap((piece, i) => (i ? [" ", piece] : [piece])));
    document.title = `${this.words.methods[this.run.method]}, ${this.run.model}, ${this.run.gpu}: memory planner`;
  }

  showVerdict() {
    const answer = this.answers.get(this.run.method);
    const box = byId("main");
    const method = this.words.methods[this.run.method];
    const adapters = this.run.method === "full" ? "" : `, rank ${this.run.rank}`;
    byId("asked").textContent = `${method} of ${this.run.model} on ${plainName(this.device)}: ` +
      `batch ${count(this.run.bs)} × ${count(this.run.seq)} tokens${adapters}`;
    if (answer.refused) {
      box.dataset.state = "none";
      byId("answer").textContent = "No prediction";
      byId("because").textContent = answer.refused;
      byId("facts").replaceChildren();
      return;
    }
    const { memory, fit } = answer;
    const over = Math.abs(fit.headroom_bytes);
    box.dataset.state = fit.fits ? "good" : "bad";
    byId("answer").textContent = fit.fits ? "Fits" : "Does not fit";
    byId("because").textContent = fit.fits ? `with ${gib(over)} GiB to spare` : `${gib(over)} GiB too much`;
    const context = memory.context_bytes;
    const facts = [
      ["Peak allocated", `${gib(memory.peak_allocated_bytes)} GiB`, `reached in ${memory.peak_moment}`],
      ["CUDA context", context === null ? "not known" : `${gib(context)} GiB`,
        context === null ? "nobody has measured it, and it is not counted" : "outside the allocator"],
      ["Card", `${gib(fit.capacity_bytes)} GiB`, "as PyTorch sees it"],
      ["Largest batch", fit.max_bs ? this.batchWords(fit.max_bs) : "none", `at ${count(this.run.seq)} tokens a sequence`],
    ];
    byId("facts").replaceChildren(...facts.map(([name, value, note]) => element("div", {},
      element("dt", {}, name), element("dd", {}, value), element("dd", { class: "note" }, note))));
  }

  /** A largest batch; beyond the largest that a run can have nobody has looked. */
  batchWords(bs) {
    return bs === this.data.engine.limits.bs ? `all to ${count(bs)}` : count(bs);
  }

  showAdvice() {
    const found = advise(this.engine, this.run, this.words);
    const fits = this.answers.get(this.run.method).fit?.fits;
    byId("details").hidden = byId("facts").childElementCount === 0;
    byId("advice-box").hidden = found.length === 0;
    byId("advice-title").textContent = fits ? "What also fits" : "What would fit";
    byId("advice").replaceChildren(...found.map(({ text, change }) => {
      const button = element("button", { type: "button" }, text);
      button.addEventListener("click", () => {
        this.change(change);
        byId("verdict").focus();
      });
      return button;
    }));
  }

  showTable() {
    const methods = this.choices.method;
    const exact = byId("exact").checked;
    const head = element("tr", {}, element("th", { scope: "col" }, exact ? "bytes" : "GiB"),
      ...methods.map((method) => this.methodHead(method)));
    const row = (name, show, style = null) => element("tr", { class: style }, element("th", { scope: "row" }, name),
      ...methods.map((method) => this.cell(method, show)));
    const size = (bytes) => (exact ? [count(bytes), null] : [signed(bytes), `${count(bytes)} bytes`]);
    const parts = Object.entries(this.words.parts).map(([part, name]) => row(name, ({ memory }) => size(memory[part])));
    byId("parts").replaceChildren(element("thead", {}, head), element("tbody", {},
      ...parts,
      row("peak allocated", ({ memory }) => size(memory.peak_allocated_bytes), "total"),
      row("fits", ({ fit }) => [fit.fits ? "yes" : "no", null]),
      row("to spare", ({ fit }) => size(fit.headroom_bytes)),
      row("largest batch", ({ fit }) => [this.batchWords(fit.max_bs), null]),
      row("reached in", ({ memory }) => [memory.peak_moment, null], "words")));
  }

  methodHead(method) {
    const chosen = method === this.run.method;
    return element("th", { scope: "col", class: chosen ? "chosen" : null }, this.words.methods[method]);
  }

  /** A cell of a method: what `show` makes of its answer, [text, tooltip]; a dash with the reason where it has none. */
  cell(method, show) {
    const answer = this.answers.get(method);
    const [text, title] = answer.refused ? ["–", answer.refused] : show(answer);
    return element("td", { title, class: method === this.run.method ? "chosen" : null }, text);
  }

  // -- figures -------------------------------------------------------------------------------------------------------

  drawFigures() {
    const names = { ...this.words.parts, context_bytes: "CUDA context" };
    const rows = this.choices.method.map((method) => this.bar(method));
    drawBars(byId("bars"), rows, this.device, this.words.looks, names, (method) => this.set("method", method));
    byId("legend").replaceChildren(...Object.entries(this.words.looks).map(([part, look]) => {
      const swatch = svg("svg", { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" },
        svg("rect", { x: 0.5, y: 0.5, width: 15, height: 15, fill: `url(#fill-${part})`, class: "segment" }));
      return element("li", {}, swatch, names[part]);
    }));
    const answer = this.answers.get(this.run.method);
    const state = answer.refused ? "none" : answer.fit.fits ? "good" : "bad";
    const curves = this.frontier().curves.map((points, i) =>
      ({ points, chosen: this.choices.method[i] === this.run.method }));
    drawFrontier(byId("frontier"), curves, { bs: this.run.bs, seq: this.run.seq, state });
    this.showCurveNames(curves);
  }

  bar(method) {
    const answer = this.answers.get(method);
    const chosen = method === this.run.method;
    const row = { name: method, label: this.words.methods[method], chosen, parts: [], ...answer };
    if (answer.refused) return row;
    const context = answer.memory.context_bytes ?? 0;
    const parts = Object.keys(this.words.parts).map((part) => [part, answer.memory[part]]);
    return {
      ...row, parts: [...parts, ["context_bytes", context]], fits: answer.fit.fits,
      needed: answer.memory.peak_allocated_bytes + context,
    };
  }

  /** The curve of each method and the largest batch at each length; they depend on neither batch, length nor method. */
  frontier() {
    const key = JSON.stringify({ ...this.run, bs: 0, seq: 0, method: "" });
    if (this.known?.key !== key) {
      const longest = Math.min(this.engine.models.get(this.run.model).max_positions ?? 2 ** 17, 2 ** 17);
      const lengths = STOPS.seq.filter((seq) => Number.isInteger(Math.log2(seq)) && seq <= longest);
      this.known = {
        key,
        curves: this.choices.method.map((method) => this.curve(method)),
        batches: lengths.map((seq) => [seq, this.choices.method.map((method) => this.largestBatch(method, seq))]),
      };
    }
    return this.known;
  }

  /** [longest sequence, batch] for ever larger batches, as far as the figure goes. */
  curve(method) {
    const points = [];
    for (let power = 0; power <= 20; power += 0.125) {
      const bs = Math.round(2 ** power);
      if (bs === points.at(-1)?.[1]) continue;
      const seq = longestSequence(this.engine, { ...this.run, method, bs }, this.device);
      if (seq < SHORTEST) break;
      points.push([seq, bs]);
    }
    const most = this.largestBatch(method, SHORTEST);
    return most ? [...points, [SHORTEST, most]] : points;
  }

  largestBatch(method, seq) {
    const run = { ...this.run, method, seq, bs: 1 };
    return this.engine.refusal(run) === null ? this.engine.largestBatch(run, this.device) : 0;
  }

  showCurveNames(curves) {
    byId("curves").replaceChildren(...this.choices.method.map((method, i) => {
      const style = `curve-${i % DASHES.length}`;
      const swatch = svg("svg", { viewBox: "0 0 32 12", width: 32, height: 12, "aria-hidden": "true" },
        svg("path", { d: "M0 6H32", class: `curve ${style}`, "stroke-dasharray": DASHES[i % DASHES.length] || null }),
        svg("path", { d: mark(MARKS[i % MARKS.length], 16, 6), class: `mark ${style}` }));
      const none = curves[i].points.length ? "" : " (does not fit)";
      return element("li", {}, swatch, this.words.methods[method] + none);
    }));
  }

  showFrontierTable() {
    const head = element("tr", {}, element("th", { scope: "col" }, "tokens"),
      ...this.choices.method.map((method) => this.methodHead(method)));
    const rows = this.frontier().batches.map(([seq, batches]) => element("tr", {},
      element("th", { scope: "row" }, count(seq)), ...batches.map((bs) => element("td", {}, this.batchWords(bs)))));
    byId("batches").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
  }

  showRemarks() {
    const answer = this.answers.get(this.run.method);
    const items = (lines) => (lines ?? []).map((line) => element("li", {}, line));
    byId("remarks").hidden = answer.refused !== undefined;
    byId("assumptions").replaceChildren(...items(answer.assumptions));
    byId("unmodelled").replaceChildren(...items(answer.unmodelled));
  }
}

function signed(bytes) {
  return bytes < 0 ? `−${gib(-bytes)}` : gib(bytes);
}

/** The plans, which the page carries packed. */
async function unpacked(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

async function begin() {
  if (typeof DecompressionStream === "undefined") {
    byId("answer").textContent = "This browser is too old";
    byId("because").textContent = "It cannot unpack the plans: use one of 2023 or later.";
    return;
  }
  window.planner = new Planner(await unpacked(byId("plans").textContent.trim()));
  document.documentElement.dataset.ready = "yes";
}

begin();
