// The objectives on one response: token log-ratios d, one advantage A, the mean over tokens. The old policy's log-probabilities are -1.
// Each gives the ratio and the gate of every token, the loss, and d loss / d log-probability of every token.
const gspoPlay = (() => {
  const mean = (values) => values.reduce((total, value) => total + value, 0) / values.length;
  const bounded = (x, low, high) => Math.min(Math.max(x, low), high);
  const open = (x, A, low, high) => (A === 0 || (A > 0 && x > 1 + high) || (A < 0 && x < 1 - low) ? 0 : 1);
  const clipped = (x, A, low, high) => Math.min(x * A, bounded(x, 1 - low, 1 + high) * A);

  const byToken = (d, A, { low, high }) => {
    const ratio = d.map(Math.exp), gate = ratio.map((x) => open(x, A, low, high));
    return { ratio, gate, loss: -mean(ratio.map((x) => clipped(x, A, low, high))), gradient: ratio.map((x, t) => -x * A * gate[t] / d.length) };
  };
  const bySequence = (d, A, { low, high }) => {
    const s = Math.exp(mean(d)), gate = open(s, A, low, high), every = (value) => d.map(() => value);
    return { ratio: every(s), gate: every(gate), loss: -clipped(s, A, low, high), gradient: every(-s * A * gate / d.length) };
  };
  const gmpo = (d, A, { low, high }) => {
    const kept = d.map((x) => (A > 0 ? Math.min(x, high) : A < 0 ? Math.max(x, -low) : x)), value = Math.exp(mean(kept)) * A;
    const gate = d.map((x, t) => (A !== 0 && kept[t] === x ? 1 : 0));
    return { ratio: d.map(Math.exp), gate, loss: -value, gradient: gate.map((one) => -value * one / d.length) };
  };
  const cispo = (d, A, { high }) => {
    const ratio = d.map(Math.exp), weight = ratio.map((x) => Math.min(x, 1 + high));
    const gate = d.map(() => (A === 0 ? 0 : 1));
    return { ratio, gate, loss: -mean(weight.map((x, t) => x * A * (d[t] - 1))), gradient: weight.map((x) => -x * A / d.length) };
  };
  const sapo = (d, A, { tau_pos, tau_neg }) => {
    const tau = A > 0 ? tau_pos : tau_neg, ratio = d.map(Math.exp), p = ratio.map((x) => 1 / (1 + Math.exp(-tau * (x - 1))));
    const gate = p.map((one) => (A === 0 ? 0 : 4 * one * (1 - one)));
    return { ratio, gate, loss: -mean(p.map((one) => 4 / tau * one * A)), gradient: ratio.map((x, t) => -gate[t] * x * A / d.length) };
  };

  const objectives = [
    { id: "ppo", name: "PPO", about: "a ratio and a gate per token", page: "spec/surrogate/#GSPO-SURR-1", parameters: { low: 0.2, high: 0.2 }, evaluate: byToken },
    { id: "grpo", name: "GRPO", about: "the same, a wider upper range", page: "spec/relatives/", parameters: { low: 0.2, high: 0.27 }, evaluate: byToken },
    { id: "gspo", name: "GSPO", about: "one ratio, one gate, all tokens alike", page: "spec/ratio/#GSPO-RATIO-2", parameters: { low: 3e-4, high: 4e-4 }, evaluate: bySequence },
    { id: "gspo_token", name: "GSPO-token", about: "GSPO, while the advantage is one for all", page: "spec/gradient/#GSPO-GRAD-4", parameters: { low: 3e-4, high: 4e-4 }, evaluate: bySequence },
    { id: "gmpo", name: "GMPO", about: "tokens bounded in log space, then one mean", page: "spec/surrogate/#GSPO-SURR-9", parameters: { low: 0.4, high: 0.4 }, evaluate: gmpo },
    { id: "cispo", name: "CISPO", about: "the weight is bounded, no gradient is cut", page: "spec/surrogate/#GSPO-SURR-8", parameters: { high: 4 }, evaluate: cispo },
    { id: "sapo", name: "SAPO", about: "a soft gate", page: "spec/surrogate/#GSPO-SURR-10", parameters: { tau_pos: 1, tau_neg: 1.05 }, evaluate: sapo },
  ];
  return { objectives };
})();
if (typeof module !== "undefined") module.exports = gspoPlay;
