// GSPO in plain JavaScript behind the suite's JSON lines; needs Node and nothing else.
//
//     gspo check 'cmd:node harness.js'
//
// Below PROTOCOL is what any harness needs; below IMPLEMENTATION stands what yours replaces. Messages go to
// stdout, one JSON object a line; whatever else there is to say goes to stderr (console.error).

"use strict";

const readline = require("node:readline");

// ---- PROTOCOL -----------------------------------------------------------------------------------------------

const WORDS = { nan: NaN, inf: Infinity, "-inf": -Infinity };

// An array of the suite: { dtype, shape, data }, data flat, row by row, NaN and infinities as strings.
function decode({ dtype, shape, data }) {
  const numbers = data.map((value) => (typeof value === "string" ? WORDS[value] : Number(value)));
  const kind = dtype === "float32" ? Float32Array : dtype === "float64" ? Float64Array : Array;
  return { shape, data: kind.from(numbers) };
}

// A number, or { shape, data }; float32 is stored in float32, as an array of that dtype would be.
function encode(value, dtype) {
  if (typeof value === "number") return word(dtype === "float32" ? Math.fround(value) : value);
  return { shape: value.shape, data: Array.from(value.data, (number) => encode(number, dtype)) };
}

function word(number) {
  if (Number.isFinite(number)) return number;
  return Number.isNaN(number) ? "nan" : number > 0 ? "inf" : "-inf";
}

class Skip extends Error {}

function answer({ seq, case: question }) {
  try {
    const inputs = Object.fromEntries(Object.entries(question.inputs).map(([name, array]) => [name, decode(array)]));
    const found = OPERATIONS[question.operation](inputs, question.parameters);
    const outputs = Object.fromEntries(question.outputs.map((name) => [name, encode(found[name], question.dtype)]));
    return { seq, outputs };
  } catch (error) {
    if (error instanceof Skip) return { seq, skipped: { reason: error.message, url: null } };
    return { seq, error: { message: error.message, traceback: error.stack } };
  }
}

function reply(message) {
  if (message.cmd === "start") {
    return { version: 1, implementation: { name: "javascript", node: process.version }, capabilities: CAPABILITIES };
  }
  return answer(message);
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const message = JSON.parse(line);
  if (message.cmd === "stop") process.exit(0);
  process.stdout.write(JSON.stringify(reply(message)) + "\n");
});

// ---- IMPLEMENTATION -----------------------------------------------------------------------------------------

const OPERATIONS = { policy_loss, ratio, clipped_surrogate, aggregate, group_advantages, leave_one_out_advantages };

const CAPABILITIES = {
  operations: Object.keys(OPERATIONS),
  dtypes: ["float32", "float64"],
  layouts: ["padded", "packed"],
  gradient: true,
  metrics: ["clip_fraction", "clip_fraction_low", "clip_fraction_high", "ratio_mean", "ratio_min", "ratio_max", "num_tokens"],
  objectives: ["sequence", "gspo_token"].map((kind) => ({
    ratio: kind,
    surrogate: { kind: "clip", dual: null },
    aggregation: { mode: "sequence_mean_token_mean", count: "all" },
    penalty: null,
    correction: [],
    log_ratio_cap: null,
  })),
  inputs: ["logp", "old_logp", "advantages", "mask", "offsets", "groups", "rewards", "ratio", "values"],
  parameters: [
    ...["objective", "kind", "clip", "mode", "normalizer"],
    ...["center", "scale", "ddof", "eps", "eps_placement"],
  ],
};

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const mean = (numbers) => sum(numbers) / numbers.length;
const clip = (x, { low, high }) => Math.min(Math.max(x, 1 - low), 1 + high);

// The positions of the counted tokens of each sequence, whichever way they lie.
function sequences({ mask, offsets }) {
  const bounds = offsets ? offsets.data : Array.from({ length: mask.shape[0] + 1 }, (_, i) => i * mask.shape[1]);
  return bounds.slice(0, -1).map((start, i) => {
    const positions = Array.from({ length: bounds[i + 1] - start }, (_, t) => start + t);
    return mask ? positions.filter((position) => mask.data[position]) : positions;
  });
}

// m_i, the mean of logp - old_logp over the counted tokens: subtracted first, then summed (GSPO-RATIO-2, GSPO-RATIO-5).
function meanLogRatio({ logp, old_logp }, positions) {
  return positions.length ? mean(positions.map((p) => logp.data[p] - old_logp.data[p])) : 0;
}

// A gate is closed where the surrogate is flat: beyond the bound on the side that A pushes to (GSPO-SURR-2).
function closedBy(s, advantage, { low, high }) {
  if (advantage > 0 && s > 1 + high) return "high";
  return advantage < 0 && s < 1 - low ? "low" : null;
}

// Equation 5 of the paper and its gradient in closed form (GSPO-GRAD-1); GSPO-token has both in common for one
// advantage per response (GSPO-GRAD-4).
function policy_loss(inputs, { objective, normalizer }) {
  const range = objective.surrogate;
  if (inputs.offsets) checkOffsets(inputs.offsets, inputs.logp.data.length);
  const batch = sequences(inputs);
  const divisor = normalizer ?? batch.length;
  check(inputs, batch);
  const gradient = inputs.logp.data.map(() => 0);
  const parts = batch.map((positions, i) => {
    const [s, advantage] = [Math.exp(meanLogRatio(inputs, positions)), inputs.advantages.data[i]];
    const fell = closedBy(s, advantage, range);
    const open = fell === null && advantage !== 0;
    for (const p of positions) gradient[p] = open ? -(s * advantage) / (positions.length * divisor) : 0;
    const value = advantage === 0 || !positions.length ? 0 : Math.min(s * advantage, clip(s, range) * advantage);
    return { value, s, fell, tokens: positions.length };
  });
  const loss = divisor ? -sum(parts.map((part) => part.value)) / divisor : 0;
  return { loss, gradient: { shape: inputs.logp.shape, data: gradient }, ...metrics(parts) };
}

// Offsets run from 0 upwards and end inside the tokens (GSPO-PACK-3).
function checkOffsets({ data }, tokens) {
  const rising = data.every((offset, i) => (i === 0 ? offset === 0 : offset >= data[i - 1]));
  if (!rising || data[data.length - 1] > tokens) throw new Error("offsets: expected 0, then no step back, and at most N");
}

// What is not finite at a counted position, and advantages that fit no response, are errors (GSPO-NUM-6, GSPO-ADV-14).
function check({ logp, old_logp, advantages }, batch) {
  for (const [name, { data }] of Object.entries({ logp, old_logp })) {
    if (batch.some((positions) => positions.some((p) => !Number.isFinite(data[p])))) {
      throw new Error(`${name}: expected finite numbers at counted positions`);
    }
  }
  if (!advantages.data.every(Number.isFinite)) throw new Error("advantages: expected finite numbers");
  if (String(advantages.shape) !== String([batch.length])) throw new Error("advantages: expected one per response");
}

function metrics(parts) {
  const tokens = sum(parts.map((part) => part.tokens));
  const present = parts.filter((part) => part.tokens);
  const ratios = present.map((part) => part.s);
  const share = (...sides) => sum(parts.map((part) => (sides.includes(part.fell) ? part.tokens : 0))) / Math.max(tokens, 1);
  return {
    "metrics.clip_fraction": share("low", "high"),
    "metrics.clip_fraction_low": share("low"),
    "metrics.clip_fraction_high": share("high"),
    "metrics.ratio_mean": present.length ? mean(ratios) : 1,
    "metrics.ratio_min": present.length ? Math.min(...ratios) : 1,
    "metrics.ratio_max": present.length ? Math.max(...ratios) : 1,
    "metrics.num_tokens": tokens,
  };
}

function ratio(inputs, { kind }) {
  const batch = sequences(inputs);
  const logs = batch.map((positions) => meanLogRatio(inputs, positions) * (kind === "product" ? positions.length : 1));
  if (kind === "sequence" || kind === "product") return { ratio: { shape: [batch.length], data: logs.map(Math.exp) } };
  const data = inputs.logp.data.map(() => 1);
  batch.forEach((positions, i) => {
    for (const p of positions) data[p] = Math.exp(kind === "token" ? inputs.logp.data[p] - inputs.old_logp.data[p] : logs[i]);
  });
  return { ratio: { shape: inputs.logp.shape, data } };
}

function clipped_surrogate({ ratio: x, advantages }, { clip: range }) {
  if (range.dual !== null) throw new Skip("no dual clip");
  const value = (s, advantage) => (advantage === 0 ? 0 : Math.min(s * advantage, clip(s, range) * advantage));
  const wide = advantages.data.length === x.data.length;
  if (!wide) throw new Skip("one advantage for each ratio");
  return { value: { shape: x.shape, data: Array.from(x.data, (s, i) => value(s, advantages.data[i])) } };
}

function aggregate(inputs, { mode: { mode, count, constant }, normalizer }) {
  const batch = sequences(inputs).map((positions) => positions.map((p) => inputs.values.data[p]));
  const counted = count === "non_empty" ? batch.filter((row) => row.length) : batch;
  const [perToken, divisor] = {
    sequence_mean_token_mean: [(row) => 1 / row.length, counted.length],
    sequence_mean_token_sum: [() => 1 / constant, counted.length],
    token_mean: [() => 1, sum(batch.map((row) => row.length))],
    token_sum: [() => 1 / constant, 1],
  }[mode] ?? [null, null];
  if (perToken === null) throw new Skip(`no ${mode}`);
  const total = sum(batch.map((row) => (row.length ? perToken(row) * sum(row) : 0)));
  const by = normalizer ?? divisor;
  return { value: by ? total / by : 0 };
}

// Rewards centred on their group and scaled by its spread; equal rewards give exactly 0, and where the spread is
// undefined nothing is scaled (GSPO-ADV-1, GSPO-ADV-3).
function group_advantages({ rewards, groups }, { center, scale, ddof, eps, eps_placement }) {
  if (center !== "mean" || !["std", "none"].includes(scale)) throw new Skip(`no ${center} with ${scale}`);
  const members = group(rewards.data, groups.data);
  const standardised = (reward, others) => {
    if (others.every((other) => other === others[0])) return 0;
    const centred = reward - mean(others);
    if (scale === "none" || others.length <= ddof) return centred;
    const variance = sum(others.map((other) => (other - mean(others)) ** 2)) / (others.length - ddof);
    return centred / (eps_placement === "variance" ? Math.sqrt(variance + eps) : Math.sqrt(variance) + eps);
  };
  const data = Array.from(rewards.data, (reward, i) => standardised(reward, members.get(groups.data[i])));
  return { advantages: { shape: rewards.shape, data } };
}

function leave_one_out_advantages({ rewards, groups }) {
  const members = group(rewards.data, groups.data);
  const left = (reward, others) => (others.length > 1 ? (reward - mean(others)) * (others.length / (others.length - 1)) : 0);
  const data = Array.from(rewards.data, (reward, i) => left(reward, members.get(groups.data[i])));
  return { advantages: { shape: rewards.shape, data } };
}

function group(rewards, ids) {
  const members = new Map();
  ids.forEach((id, i) => members.set(id, [...(members.get(id) ?? []), rewards[i]]));
  return members;
}
