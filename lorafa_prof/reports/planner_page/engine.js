// The analytic engine's plans, evaluated. Sizes are bytes; every one is rounded up to the allocator's granule, and
// doubles are exact up to 2^53, beyond which nothing is answered. The rules are those of lorafa_prof/analytic:
// sizes.py (symbols and rounding), plan.py (the peak), engine.py (the fit) and search.py (the largest batch).

const EXACT = Number.MAX_SAFE_INTEGER;

/** The value of each symbol of a size, for a batch of `bs` sequences of `seq` tokens and adapters of rank `rank`. */
function symbolValues(bs, seq, rank) {
  const up = (multiple) => Math.ceil(seq / multiple) * multiple;
  const padded = up(16);
  const aligned = padded === seq;
  return {
    b: bs, s: seq, r: rank, S: up(128), E: up(32), F: padded,
    A: aligned ? seq : 0, U: aligned ? 0 : seq, V: aligned ? 0 : padded, p: seq + 1,
  };
}

/** Evaluates the plans that a page carries. */
class Engine {
  constructor(data) {
    this.data = data;
    this.granule = data.engine.granule;
    this.models = new Map(data.models.map((model) => [model.name, model]));
    this.devices = new Map(data.devices.map((device) => [device.name, device]));
  }

  /** The number of a run's plan, or -1 - n where texts[n] says why there is none. */
  planNumber(run, bs) {
    const model = this.models.get(run.model);
    let number = model.window !== null && run.seq >= model.window ? 1 : 0;
    number = number * 2 + (bs === 1 ? 1 : 0);
    for (const [name, values] of this.data.options) {
      number = number * values.length + values.indexOf(run[name]);
    }
    return model.methods[run.method][number];
  }

  /** Bytes of one tensor of each size. */
  termSizes(bs, seq, rank) {
    const values = symbolValues(bs, seq, rank);
    return this.data.terms.map(([coefficient, symbols]) => {
      let size = coefficient;
      for (const symbol of symbols) size *= values[symbol];
      return Math.ceil(size / this.granule) * this.granule;
    });
  }

  total(sum, sizes) {
    const terms = this.data.sums[sum];
    let bytes = 0;
    for (let i = 0; i < terms.length; i += 2) bytes += terms[i + 1] * sizes[terms[i]];
    return bytes;
  }

  /** The peak without library workspaces: its bytes, and the row of the moment: the first of the highest. */
  peak(number, bs, seq, rank) {
    const moments = this.data.moments[this.data.plans[number].moments];
    const sizes = this.termSizes(bs, seq, rank);
    const width = this.data.parts.length + 1;
    let bytes = -1;
    let row = 0;
    for (let at = 0; at < moments.length; at += width) {
      let live = 0;
      for (let part = 1; part < width; part += 1) live += this.total(moments[at + part], sizes);
      if (live > bytes) [bytes, row] = [live, at];
    }
    return { bytes, row, sizes };
  }

  /** Peak allocated bytes for a batch, workspaces not counted; null where there is no plan. */
  allocated(run, bs) {
    const number = this.planNumber(run, bs);
    return number < 0 ? null : this.peak(number, bs, run.seq, run.rank).bytes;
  }

  /** Why a run has no prediction, or null. */
  refusal(run) {
    const model = this.models.get(run.model);
    if (model.max_positions !== null && run.seq > model.max_positions) {
      return `sequence length ${run.seq} is beyond the ${model.max_positions} positions of ${model.name}`;
    }
    const number = this.planNumber(run, run.bs);
    if (number < 0) return this.data.texts[-1 - number];
    const ranks = model.ranks[run.method] ?? [];
    for (let at = 0; at < ranks.length; at += 2) {
      if (run.rank > ranks[at]) return this.data.texts[ranks[at + 1]].replaceAll("{rank}", run.rank);
    }
    return null;
  }

  /** What `lorafa-prof predict --format json` prints of a run's memory and fit; {refused} where it is refused. */
  evaluate(run) {
    const refused = this.refusal(run);
    if (refused !== null) return { refused };
    const number = this.planNumber(run, run.bs);
    const plan = this.data.plans[number];
    const moments = this.data.moments[plan.moments];
    const peak = this.peak(number, run.bs, run.seq, run.rank);
    if (peak.bytes > EXACT) return { refused: "batch and sequence length are too large for any memory" };
    const device = this.devices.get(run.gpu);
    const memory = {};
    this.data.parts.forEach((part, i) => {
      memory[part] = this.total(moments[peak.row + 1 + i], peak.sizes);
    });
    memory.workspace_bytes = device.workspace_bytes;
    memory.peak_allocated_bytes = peak.bytes + device.workspace_bytes;
    memory.context_bytes = device.context_bytes;
    memory.peak_moment = this.data.texts[moments[peak.row]];
    const texts = (numbers) => numbers.map((text) => this.data.texts[text]);
    return {
      memory,
      fit: this.fit(run, device, peak.bytes),
      assumptions: [...texts(plan.assumptions), device.assumption],
      unmodelled: [...texts(plan.unmodelled), ...device.unmodelled[run.attn]],
    };
  }

  fit(run, device, allocated) {
    const overhead = device.workspace_bytes + (device.context_bytes ?? 0);
    const needed = allocated + overhead;
    return {
      device: device.name,
      capacity_bytes: device.total_bytes,
      context_bytes: device.context_bytes,
      fits: needed <= device.total_bytes,
      headroom_bytes: device.total_bytes - needed,
      max_bs: this.largestBatch(run, device),
    };
  }

  /** The largest batch that fits on the device at the run's sequence length; 0 where not even one sequence does. */
  largestBatch(run, device) {
    const limit = device.total_bytes - device.workspace_bytes - (device.context_bytes ?? 0);
    return largest((bs) => {
      const allocated = this.allocated(run, bs);
      return allocated !== null && allocated <= limit;
    }, this.data.engine.limits.bs);
  }
}

/** The largest number from 1 to `most` that fits, 0 where not even 1 does: ever longer steps, then bisection. */
function largest(fits, most) {
  if (!fits(1)) return 0;
  let low = 1;
  let stride = 1;
  while (low < most) {
    const high = Math.min(low + stride, most);
    if (!fits(high)) return bisect(fits, low, high);
    low = high;
    stride *= 2;
  }
  return most;
}

function bisect(fits, low, high) {
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (fits(middle)) low = middle;
    else high = middle;
  }
  return low;
}
