// What would fit: changes of one thing (or of method and checkpointing together), each evaluated, none guessed.

/** Sequence lengths are looked for in steps of so many tokens: between them kernels pad, and memory may fall again. */
const SEQUENCE_STEP = 16;

/** The longest sequence that fits for a batch, in whole steps; 0 where not even one step does. */
function longestSequence(engine, run, device) {
  const limit = device.total_bytes - device.workspace_bytes - (device.context_bytes ?? 0);
  const most = Math.min(engine.models.get(run.model).max_positions ?? 2 ** 20, 2 ** 20);
  const fits = (steps) => {
    const allocated = engine.allocated({ ...run, seq: steps * SEQUENCE_STEP }, run.bs);
    return allocated !== null && allocated <= limit;
  };
  return largest(fits, Math.floor(most / SEQUENCE_STEP)) * SEQUENCE_STEP;
}

/** Changes of a run that fit its card, or the smallest card that it fits on: [{text, change}]. */
function advise(engine, run, words) {
  const device = engine.devices.get(run.gpu);
  const now = engine.evaluate(run);
  const fits = (change) => engine.evaluate({ ...run, ...change }).fit?.fits === true;
  const found = [];
  const offer = (text, change) => found.push({ text, change });
  if (now.refused) return found;
  const longest = longestSequence(engine, run, device);
  if (now.fit.fits) {
    if (now.fit.max_bs > run.bs) offer(`Batch up to ${count(now.fit.max_bs)}`, { bs: now.fit.max_bs });
    if (longest > run.seq) offer(`Up to ${count(longest)} tokens`, { seq: longest });
  } else {
    if (now.fit.max_bs) offer(`Batch ${count(now.fit.max_bs)}`, { bs: now.fit.max_bs });
    if (longest) offer(`${count(longest)} tokens`, { seq: longest });
    const recomputed = { checkpointing: "full" };
    const offered = engine.data.options.some(([name, values]) => name === "checkpointing" && values.includes("full"));
    if (offered && run.checkpointing === "none" && fits(recomputed)) offer("Checkpointing", recomputed);
    for (const method of Object.keys(words.methods).filter((name) => name !== run.method)) {
      if (fits({ method })) offer(words.methods[method], { method });
      else if (offered && fits({ method, ...recomputed })) {
        offer(`${words.methods[method]} with checkpointing`, { method, ...recomputed });
      }
    }
  }
  const cards = [...engine.devices.values()].sort((a, b) => a.total_bytes - b.total_bytes);
  const card = cards.find((each) => fits({ gpu: each.name }));
  const differs = card && card.name !== run.gpu && !(now.fit.fits && card.total_bytes >= device.total_bytes);
  if (differs) offer(`Smallest card: ${plainName(card)}, ${gib(card.total_bytes, 1)} GiB`, { gpu: card.name });
  return found;
}
