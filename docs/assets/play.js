// The page where log-ratios are dragged: sliders, one card per objective, redrawn on every input.
(() => {
  const TOKENS = 8, SCALES = [0.001, 0.02, 0.5];
  const SHAPES = {
    "all 0": () => 0,
    drift: () => 0.3,
    noise: (t) => [0.6, -0.4, 0.2, -0.7, 0.5, 0.1, -0.5, 0.25][t],
    "one outlier": (t) => (t === 3 ? 1 : 0),
  };
  const LABELS = { low: "ε low", high: "ε high", tau_pos: "τ, A > 0", tau_neg: "τ, A < 0" };

  const TITLES = { ratio: "ratio", gate: "gate", "∂L": "derivative of the loss with respect to the log-probability of the token" };

  const make = (tag, attributes = {}, ...children) => {
    const space = tag === "svg" || tag === "rect" || tag === "line" ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
    const element = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const number = (value, digits = 3) => {
    if (Number.isInteger(value) && Math.abs(value) < 1e4) return String(value).replace("-", "−");
    const size = Math.abs(value);
    const text = size >= 1e4 || size < 1e-3 ? value.toExponential(1) : Math.abs(size - 1) < 0.01 ? value.toFixed(4) : value.toPrecision(digits);
    return text.replace("-", "−").replace("e−", "e-").replace("e+", "e");
  };
  const field = (label, input) => make("label", { class: "play-field" }, make("span", {}, label), input);

  const start = (root) => {
    const state = { positions: [0.6, -0.4, 0.2, -0.7, 0.5, 0.1, -0.5, 0.25], scale: 0.5, size: 1, sign: 1 };
    const cards = gspoPlay.objectives.map((objective) => card(objective, () => draw()));
    const sliders = state.positions.map((_, t) => slider(t, (value) => { state.positions[t] = value; draw(); }));
    const told = sliders.map((one) => one.querySelector("output"));

    const draw = () => {
      const d = state.positions.map((x) => x * state.scale), A = state.sign * state.size;
      sliders.forEach((one, t) => { const input = one.querySelector("input"); input.value = state.positions[t]; told[t].textContent = state.scale < 0.01 || !d[t] ? number(d[t]) : d[t].toFixed(state.scale < 0.1 ? 4 : 3).replace("-", "−"); input.setAttribute("aria-valuetext", told[t].textContent); });
      cards.forEach((one) => one.draw(d, A));
    };
    const shapes = Object.entries(SHAPES).map(([name, shape]) => {
      const button = make("button", { type: "button", class: "md-button" }, name);
      button.addEventListener("click", () => { state.positions = state.positions.map((_, t) => shape(t)); draw(); });
      return button;
    });
    const scale = make("select", { "aria-label": "scale of the log-ratios" }, ...SCALES.map((value) => make("option", { value }, `± ${value}`)));
    scale.value = String(state.scale);
    scale.addEventListener("change", () => { state.scale = Number(scale.value); draw(); });
    const sign = make("select", { "aria-label": "sign of the advantage" }, make("option", { value: 1 }, "positive"), make("option", { value: -1 }, "negative"));
    sign.addEventListener("change", () => { state.sign = Number(sign.value); draw(); });
    const size = make("input", { type: "range", min: 0, max: 3, step: 0.1, value: 1, "aria-label": "size of the advantage" });
    const sized = make("output", {}, "1");
    size.addEventListener("input", () => { state.size = Number(size.value); sized.textContent = size.value; draw(); });

    root.replaceChildren(
      make("fieldset", { class: "play-tokens" }, make("legend", {}, "Token log-ratios"), make("div", { class: "play-sliders" }, ...sliders),
        make("div", { class: "play-row" }, ...shapes)),
      make("fieldset", { class: "play-row" }, make("legend", {}, "Scale and advantage"), field("scale", scale), field("advantage", sign), field("size", size), sized),
      make("div", { class: "play-cards" }, ...cards.map((one) => one.element)));
    draw();
  };

  const slider = (t, moved) => {
    const input = make("input", { type: "range", min: -1, max: 1, step: 0.01, "aria-label": `log-ratio of token ${t + 1}`, "aria-orientation": "vertical" });
    input.addEventListener("input", () => moved(Number(input.value)));
    return make("div", { class: "play-slider" }, input, make("output", {}));
  };

  const card = (objective, changed) => {
    const parameters = { ...objective.parameters };
    const inputs = Object.keys(parameters).map((name) => {
      const input = make("input", { type: "number", min: 0, step: "any", value: parameters[name], "aria-label": `${LABELS[name]} of ${objective.name}` });
      input.addEventListener("input", () => { if (input.value !== "" && (name.startsWith("tau") ? Number(input.value) > 0 : Number(input.value) >= 0)) { parameters[name] = Number(input.value); changed(); } });
      return field(LABELS[name], input);
    });
    const bars = make("svg", { viewBox: "0 0 160 60", "aria-hidden": "true", class: "play-bars", preserveAspectRatio: "none" });
    const rows = Object.fromEntries(Object.keys(TITLES).map((name) => [name, make("tr")]));
    const loss = make("output", {});
    const element = make("section", { class: "play-card", "data-objective": objective.id },
      make("h3", {}, make("a", { href: `../${objective.page}` }, objective.name)), make("p", {}, objective.about),
      make("div", { class: "play-row" }, ...inputs), make("p", { class: "play-loss" }, "loss ", loss), bars,
      make("table", {}, make("tbody", {}, ...Object.values(rows))));
    const draw = (d, A) => {
      const result = objective.evaluate(d, A, parameters);
      loss.textContent = number(result.loss);
      loss.dataset.value = result.loss;
      for (const [name, row] of Object.entries(rows)) {
        row.replaceChildren(make("th", { scope: "row", title: TITLES[name] }, name), ...result[name === "∂L" ? "gradient" : name].map((value) => make("td", value === 0 && name !== "ratio" ? { class: "shut" } : {}, number(value, name === "ratio" ? 3 : 2))));
      }
      const scale = Math.max(...d.map((x) => Math.exp(x) * Math.abs(A) / d.length), 1e-12);
      bars.replaceChildren(make("line", { x1: 0, x2: 160, y1: 30, y2: 30 }), ...result.gradient.map((value, t) => {
        const height = Math.min(Math.abs(value) / scale, 1) * 28;
        return make("rect", { x: 160 / d.length * t + 3, width: 160 / d.length - 6, y: value < 0 ? 30 - height : 30, height, class: value < 0 ? "up" : "down" });
      }));
    };
    return { element, draw };
  };

  document$.subscribe(() => {
    const root = document.getElementById("play");
    if (root) start(root);
  });
})();
