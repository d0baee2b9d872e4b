"use strict";
// The page's data is explorer.json without what only a later run needs; widths stand in the order of `groups`, blocks by their position.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { points, dense, groups, layers = [], blocks = [] } = data;
  const others = data.others ?? [];
  const latency = data.resource === "latency";
  const byId = (id) => document.getElementById(id);
  let place = 0;
  let chosen = 0;

  // -- elements --------------------------------------------------------------------------------------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";

  function element(parent, name, attributes = {}, text = null) {
    const made = parent.namespaceURI === SVG || name === "svg" ? document.createElementNS(SVG, name) : document.createElement(name);
    set(made, attributes);
    if (text !== null) made.textContent = text;
    parent.append(made);
    return made;
  }

  function set(node, attributes) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  }

  // -- numbers as people read them ------------------------------------------------------------------------------------------------------

  function count(value) {
    for (const [scale, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "K"]]) {
      if (Math.abs(value) >= scale * 0.9995) {
        const scaled = value / scale;
        return scaled.toFixed(Math.abs(scaled) < 10 ? 2 : 1) + unit;
      }
    }
    return value.toFixed(0);
  }

  const digits = (value) => (value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3);
  const amount = (value) => (latency ? milliseconds(value) : count(value));
  const percent = (share, places = 1) => `${(100 * share).toFixed(places)}\u00a0%`;
  const milliseconds = (value) => `${value.toFixed(digits(value))}\u00a0ms`;
  const interval = (low, high) => `95\u00a0%: ${low.toFixed(digits(high))}\u00a0–\u00a0${high.toFixed(digits(high))}`;
  
  function exact(value) {
    if (value === 0 || (Math.abs(value) >= 0.01 && Math.abs(value) < 1e3)) return String(+value.toPrecision(3));
    return Math.abs(value) >= 1e3 ? count(value) : value.toExponential(2);
  }

  const share = (point) => point.value / dense.value;
  const keptOf = (point, network) => (network.dense.gain ? point.gain / network.dense.gain : 0);
  const kept = (point) => keptOf(point, data);
  const worth = data.worth === "divergence" ? "divergence" : "importance";
  const lost = (point) => Math.max(dense.gain - point.gain, 0);

  /** A share that leads to `index` and to no larger network, with as few digits as that takes. */
  function pick(index) {
    const own = 100 * share(points[index]);
    const next = index + 1 < points.length ? 100 * share(points[index + 1]) : Infinity;
    for (let places = 1; places <= 9; places++) {
      const rounded = Math.ceil(own * 10 ** places - 1e-7) / 10 ** places;
      if (rounded < next && rounded <= 100) return `${rounded.toFixed(places).replace(/\.?0+$/, "")}%`;
    }
    return `${own}%`;
  }

  // -- sizes and costs ------------------------------------------------------------------------------------------------------------------

  function sizeOf(axis, widths, removed) {
    let total = axis.constant ?? 0;
    for (const piece of axis.pieces ?? []) {
      if ((piece.blocks ?? []).some((block) => removed.has(block))) continue;
      total += piece.groups.reduce((product, group) => product * widths[group], piece.factor ?? 1);
    }
    return total;
  }

  /** Cost of one part at `sizes`: a product, or the table's entry at the next larger sizes (a staircase is flat below its steps). */
  function partCost(cost, sizes) {
    if (cost.coefficient !== undefined) return sizes.reduce((product, size) => product * size, cost.coefficient);
    if (sizes.some((size) => size === 0)) return 0;
    const at = sizes.reduce((start, size, axis) => {
      const found = cost.sizes[axis].findIndex((offered) => offered >= size);
      return start * cost.sizes[axis].length + (found < 0 ? cost.sizes[axis].length - 1 : found);
    }, 0);
    return cost.values[at];
  }

  const gone = (layer, removed) => (layer.blocks ?? []).some((block) => removed.has(block));

  function outputAxis(layer) {
    const axes = layer.axes ?? [];
    for (let axis = axes.length - 1; axis >= 0; axis--) if (axes[axis].pieces?.length) return axis;
    return -1;
  }

  /** Cost of a layer over the sizes of its varied axis, beside the other sizes that the widths give. */
  function costCurve(layer, widths, removed, axis) {
    const own = JSON.stringify(layer.axes[axis]);
    const parts = (layer.costs ?? []).map((cost) => ({
      cost,
      sizes: cost.axes.map((part) => sizeOf(part, widths, removed)),
      varied: cost.axes.map((part) => JSON.stringify(part) === own),
    }));
    return (size) =>
      parts.reduce((total, { cost, sizes, varied }) => total + partCost(cost, sizes.map((now, place) => (varied[place] ? size : now))), 0);
  }

  const lastSize = (layer, widths, removed) => {
    const last = layer.axes?.at(-1);
    return last ? sizeOf(last, widths, removed) : 0;
  };
  const NOTHING = new Set();

  // -- the trade ------------------------------------------------------------------------------------------------------------------------

  function niceTicks(low, high, wanted) {
    const span = Math.max(high - low, 1e-12);
    const power = 10 ** Math.floor(Math.log10(span / wanted));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => span / size <= wanted) ?? power * 10;
    const ticks = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) ticks.push(+tick.toFixed(12));
    return ticks;
  }

  function plot(host, label, height, xRange, yRange, margin = { left: 50, right: 14, top: 14, bottom: 40 }) {
    host.textContent = "";
    const width = Math.max(host.clientWidth, 240);
    const svg = element(host, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
    const x = (value) => margin.left + ((value - xRange[0]) / (xRange[1] - xRange[0])) * (width - margin.left - margin.right);
    const y = (value) => height - margin.bottom - ((value - yRange[0]) / (yRange[1] - yRange[0])) * (height - margin.top - margin.bottom);
    const back = (pixel) => xRange[0] + ((pixel - margin.left) / (width - margin.left - margin.right)) * (xRange[1] - xRange[0]);
    return { svg, x, y, back, width, height, margin, top: margin.top, bottom: height - margin.bottom };
  }

  function axes(frame, xTicks, yTicks, xText, yText, xLabel) {
    for (const tick of yTicks) {
      const y = frame.y(tick);
      element(frame.svg, "line", { class: "grid", x1: frame.margin.left, x2: frame.width - frame.margin.right, y1: y, y2: y });
      element(frame.svg, "text", { class: "tick", x: frame.margin.left - 7, y: y + 4, "text-anchor": "end" }, yText(tick));
    }
    for (const tick of xTicks) {
      element(frame.svg, "text", { class: "tick", x: frame.x(tick), y: frame.bottom + 18, "text-anchor": "middle" }, xText(tick));
    }
    element(frame.svg, "text", { class: "tick", x: frame.width - frame.margin.right, y: frame.height - 5, "text-anchor": "end" }, xLabel);
  }

  let trade = null;

  function drawTrade() {
    const measured = points.filter((point) => point.latency);
    const values = [...points.map(kept), ...measured.flatMap((point) => [point.accuracy, point.recovered_accuracy]).filter((value) => value !== undefined)];
    const low = Math.min(0, ...values);
    const ends = `from ${percent(share(points[0]))} to ${percent(share(points.at(-1)))} of the dense network`;
    const frame = plot(byId("trade"), `Kept ${worth} over ${data.words}, ${ends}`, 270, [0, 1.02], [low, 1.05]);
    const whole = (tick) => percent(tick, 0);
    axes(frame, niceTicks(0, 1, frame.width < 480 ? 5 : 10), niceTicks(low, 1, 5), whole, whole, `${data.words}, share of dense`);
    const line = points.map((point, index) => {
      const [x, y] = [frame.x(share(point)).toFixed(1), frame.y(kept(point)).toFixed(1)];
      return index ? `H${x}V${y}` : `M${x} ${y}`;
    });
    others.forEach((other, number) => {
      const at = (point) => [frame.x(point.value / other.dense.value), frame.y(keptOf(point, other))].map((pixel) => pixel.toFixed(1));
      const steps = other.points.map((point, index) => (index ? `H${at(point)[0]}V${at(point)[1]}` : `M${at(point).join(" ")}`));
      element(frame.svg, "path", { class: `curve beside-${number}`, d: steps.join("") });
    });
    element(frame.svg, "path", { class: "curve", d: line.join("") });
    for (const point of points) {
      const [cx, cy] = [frame.x(share(point)), frame.y(kept(point))];
      element(frame.svg, "circle", { class: point.proven ? "dot" : "open", cx, cy, r: 2.2 });
    }
    for (const point of measured) {
      const at = [frame.x(latency ? point.latency.ratio : share(point)), frame.y(kept(point))];
      const mark = element(frame.svg, "path", { class: "clock", d: `M${at[0]} ${at[1] - 6}l6 6l-6 6l-6 -6z` });
      element(mark, "title", {}, `measured ${milliseconds(point.latency.ms)}, ${percent(point.latency.ratio)} of dense`);
      for (const [style, value] of [["right", point.accuracy], ["again", point.recovered_accuracy]]) {
        if (value !== undefined) element(frame.svg, "circle", { class: style, cx: at[0], cy: frame.y(value), r: 4.5 });
      }
    }
    frame.here = element(frame.svg, "line", { class: "here", y1: frame.top, y2: frame.bottom });
    frame.whisker = element(frame.svg, "line", { class: "whisker" });
    frame.ring = element(frame.svg, "circle", { class: "ring", r: 6 });
    const to = (event) => {
      const box = frame.svg.getBoundingClientRect();
      const wanted = frame.back(((event.clientX - box.left) / box.width) * frame.width);
      let nearest = 0;
      points.forEach((point, index) => {
        if (Math.abs(share(point) - wanted) < Math.abs(share(points[nearest]) - wanted)) nearest = index;
      });
      show(nearest);
    };
    frame.svg.addEventListener("pointerdown", to);
    frame.svg.addEventListener("pointermove", (event) => event.buttons && to(event));
    trade = frame;
    const legend = byId("trade-legend");
    legend.textContent = "Each dot is the best network under its budget (hollow: not proven). Drag along the curve, or use the slider.";
    if (others.length) key(legend, "key-kept", data.target_name);
    others.forEach((other, number) => key(legend, `key-beside-${number}`, other.name));
    if (measured.length) key(legend, "key-clock", "measured on the target");
    if (measured.some((point) => point.accuracy !== undefined)) key(legend, "key-right", "accuracy after the cut");
    if (measured.some((point) => point.recovered_accuracy !== undefined)) key(legend, "key-again", "accuracy recovered without training");
  }

  function key(legend, style, text) {
    const entry = element(legend, "span", { class: "key" });
    element(entry, "i", { class: style });
    entry.append(text);
  }

  function moveTrade(point) {
    const [x, y] = [trade.x(share(point)), trade.y(kept(point))];
    set(trade.here, { x1: x, x2: x });
    set(trade.ring, { cx: x, cy: y });
    const [low, high] = [point.low ?? point.value, point.high ?? point.value];
    set(trade.whisker, { x1: trade.x(low / dense.value), x2: trade.x(high / dense.value), y1: y, y2: y });
  }

  // -- the network ----------------------------------------------------------------------------------------------------------------------

  /** Places of a layer's result that all run the same weights, and how to call them; heads and tokens of an attention say nothing here. */
  function stageOf(layer) {
    const shape = layer.output_shape ?? [];
    if (layer.kind === "attention" || !shape.length) return null;
    if (shape.length >= 4) return { key: shape.slice(2).reduce((a, b) => a * b, 1), text: shape.slice(2).join(" × ") };
    const places = shape.slice(0, -1).reduce((a, b) => a * b, 1);
    return { key: places, text: places === 1 ? "vector" : `${places} places` };
  }

  function unitsOf() {
    const projections = new Set(blocks.map((block) => block.projection).filter((layer) => layer !== undefined));
    const found = [];
    layers.forEach((layer, index) => {
      if (projections.has(index)) return;
      const block = layer.blocks?.[0];
      const stage = stageOf(layer);
      const last = found.at(-1);
      if (last && last.block === block && (block !== undefined || !stage || !last.stage || stage.key === last.stage.key)) {
        last.layers.push(index);
        last.stage = stage ?? last.stage;
      } else {
        found.push({ block, layers: [index], stage });
      }
    });
    return found;
  }

  const BAR = 11;
  const STEP = 17;
  const TALL = 56;
  const LINE = 58;
  const TRUNK = 13;
  const HEIGHT = 90;
  const bars = [];
  const unitNodes = [];

  function drawNetwork() {
    const host = byId("network");
    const widest = Math.max(1, ...layers.map((layer) => lastSize(layer, groups.map((group) => group.dense), NOTHING)));
    const tall = (size, room) => (size > 0 ? Math.max(2, room * Math.sqrt(size / widest)) : 0);
    let row = null;
    let key = null;
    for (const unit of unitsOf()) {
      if (row === null || (unit.stage && unit.stage.key !== key)) {
        const stage = element(host, "div", { class: "stage" });
        element(stage, "span", {}, unit.stage?.text ?? "");
        row = element(stage, "div", { class: "units" });
        key = unit.stage?.key ?? key;
      }
      const block = unit.block === undefined ? null : blocks[unit.block];
      const pad = block ? 18 : 15;
      const width = 2 * pad + STEP * unit.layers.length - (STEP - BAR) + (block ? 8 : 0);
      const figure = element(row, "figure", { class: "unit" });
      figure.style.setProperty("--wide", width);
      const svg = element(figure, "svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
      const end = width - (block ? 8 : 0);
      if (block) {
        element(svg, "path", { class: "wire shortcut", d: `M0 ${TRUNK}H${width}` });
        const down = `M4 ${TRUNK}C12 ${TRUNK} 5 ${LINE} 15 ${LINE}`;
        const up = `H${end - 12}C${end - 3} ${LINE} ${end} ${LINE - 12} ${end} ${TRUNK + 5}`;
        element(svg, "path", { class: "wire branch", d: down + up });
        element(svg, "circle", { class: "plus", cx: end, cy: TRUNK, r: 5 });
        element(svg, "path", { class: "plus", d: `M${end - 3} ${TRUNK}h6M${end} ${TRUNK - 3}v6` });
      } else {
        const down = `M0 ${TRUNK}C9 ${TRUNK} 3 ${LINE} 12 ${LINE}`;
        const up = `H${width - 12}C${width - 3} ${LINE} ${width - 9} ${TRUNK} ${width} ${TRUNK}`;
        element(svg, "path", { class: "wire", d: down + up });
      }
      const inside = element(svg, "g", { class: "inside" });
      unit.layers.forEach((index, number) => bar(inside, index, pad + number * STEP, LINE, TALL, tall));
      if (block?.projection !== undefined) bar(svg, block.projection, width / 2 - BAR / 2, TRUNK, 24, tall);
      const name = block ? block.name : layers[unit.layers[0]].name;
      element(figure, "figcaption", { title: name }, name);
      unitNodes.push({ unit, figure, svg, name, block });
    }
    host.addEventListener("click", (event) => {
      const layer = event.target.closest?.("[data-layer]");
      if (layer) chooseLayer(Number(layer.dataset.layer));
    });
  }

  function bar(parent, index, x, middle, room, tall) {
    const full = tall(lastSize(layers[index], groups.map((group) => group.dense), NOTHING), room);
    element(parent, "rect", { class: "dense", x, y: middle - full / 2, width: BAR, height: full, rx: 1.5 });
    const fill = element(parent, "rect", { class: "kept", x, width: BAR, rx: 1.5 });
    const ring = element(parent, "rect", { class: "chosen", x: x - 2, y: middle - full / 2 - 2, width: BAR + 4, height: full + 4, rx: 3 });
    const hit = element(parent, "rect", { class: "hit", x: x - 2, y: middle - room / 2, width: BAR + 4, height: room });
    hit.dataset.layer = index;
    bars.push({ index, fill, ring, middle, room, tall, title: element(hit, "title") });
  }

  function moveNetwork(point, removed) {
    for (const { index, fill, middle, room, tall, title } of bars) {
      const layer = layers[index];
      const size = gone(layer, removed) ? 0 : lastSize(layer, point.widths, removed);
      const height = tall(size, room);
      set(fill, { y: middle - height / 2, height });
      title.textContent = `${layer.name}: ${lastSize(layer, dense.widths, NOTHING)} → ${gone(layer, removed) ? "removed" : size}`;
    }
    for (const { unit, figure, svg, name, block } of unitNodes) {
      const away = unit.block !== undefined && removed.has(unit.block);
      figure.classList.toggle("gone", away);
      const sizes = unit.layers.map((index) => {
        const layer = layers[index];
        return `${layer.name} ${lastSize(layer, dense.widths, NOTHING)} to ${lastSize(layer, point.widths, removed)}`;
      });
      set(svg, { "aria-label": `${name}${block ? `, ${block.shortcut} shortcut` : ""}: ${away ? "removed" : sizes.join(", ")}` });
    }
  }

  // -- what a layer costs ---------------------------------------------------------------------------------------------------------------

  function chooseLayer(index) {
    chosen = index;
    byId("layer").value = String(index);
    for (const { index: own, ring } of bars) ring.style.visibility = own === chosen ? "visible" : "hidden";
    drawStairs();
  }

  function drawStairs() {
    const layer = layers[chosen];
    const said = byId("stairs-said");
    if (!layer || !layer.costs?.length || outputAxis(layer) < 0) {
      byId("stairs").textContent = "";
      said.textContent = layer ? `${layer.name} has no ${data.words} of its own that depends on a width.` : "";
      return;
    }
    const point = points[place];
    const removed = new Set(point.removed ?? []);
    const axis = outputAxis(layer);
    const full = sizeOf(layer.axes[axis], dense.widths, NOTHING);
    const now = sizeOf(layer.axes[axis], point.widths, removed);
    const grid = layer.costs.flatMap((cost) => cost.sizes?.[axis] ?? []);
    const even = Array.from({ length: 64 }, (_, number) => Math.max(1, Math.round(((number + 1) * full) / 64)));
    const sizes = [...new Set([...grid, ...even])].filter((size) => size <= full).sort((a, b) => a - b);
    const costHere = costCurve(layer, point.widths, removed, axis);
    const costBefore = costCurve(layer, dense.widths, NOTHING, axis);
    const here = sizes.map(costHere);
    const before = sizes.map(costBefore);
    const highest = Math.max(...before, ...here, 1e-12);
    const side = axis === layer.axes.length - 1 ? "output" : "input";
    const away = gone(layer, removed);
    const cost = costHere(now);
    const margin = { left: 54, right: 14, top: 12, bottom: 40 };
    const frame = plot(byId("stairs"), `Cost of ${layer.name} over its ${side} size`, 230, [0, full], [0, highest * 1.08], margin);
    const text = (tick) => (latency ? String(+tick.toPrecision(3)) : count(tick));
    axes(frame, niceTicks(0, full, 5), niceTicks(0, highest, 4), String, text, latency ? `${side} size; milliseconds` : `${side} size`);
    const path = (costs) => {
      const steps = costs.map((value, index) => `V${frame.y(value).toFixed(1)}H${frame.x(sizes[index]).toFixed(1)}`);
      return `M${frame.x(0)} ${frame.y(costs[0]).toFixed(1)}${steps.join("")}`;
    };
    element(frame.svg, "path", { class: "faint", d: path(before) });
    if (!away) {
      element(frame.svg, "path", { class: "curve", d: path(here) });
      element(frame.svg, "line", { class: "here", x1: frame.x(now), x2: frame.x(now), y1: frame.top, y2: frame.bottom });
      element(frame.svg, "circle", { class: "ring", cx: frame.x(now), cy: frame.y(cost), r: 5.5 });
    }
    const whole = costBefore(full);
    said.textContent = away
      ? `${layer.name} went with its block. Grey: what it costs in the dense network, ${amount(whole)} at ${full}.`
      : `${layer.name} stands at ${now} of ${full}: ${amount(cost)}, dense ${amount(whole)}. Blue: beside the other widths of this ` +
        "network; grey: beside the dense ones.";
  }

  // -- lists ----------------------------------------------------------------------------------------------------------------------------

  const rows = [];

  function drawWidths() {
    const host = byId("widths");
    others.forEach((other, number) => key(byId("widths-legend"), `key-beside-${number}`, other.name));
    const widest = Math.max(1, ...groups.map((group) => group.dense * (group.rows ?? 1)));
    for (const group of groups) {
      const name = element(host, "div", { class: "name" }, group.name);
      const track = element(host, "div", { class: others.length ? "track several" : "track", "aria-hidden": "true" });
      const full = element(track, "div", { class: "full" });
      full.style.width = `${((100 * group.dense * (group.rows ?? 1)) / widest).toFixed(2)}%`;
      const fill = element(full, "div", { class: "fill" });
      const beside = others.map((_, number) => element(full, "div", { class: `fill beside beside-${number}` }));
      rows.push({ group, name, fill, beside, number: element(host, "div", { class: "number" }) });
    }
  }

  const inGone = (group, removed) => (group.blocks ?? []).some((block) => removed.has(block));

  function moveWidths(point, removed) {
    const found = others.map((other) => atShare(other, share(point)));
    rows.forEach(({ group, name, fill, beside, number }, index) => {
      const away = inGone(group, removed);
      const times = group.rows ?? 1;
      fill.style.width = away ? "0" : `${((100 * point.widths[index]) / group.dense).toFixed(2)}%`;
      beside.forEach((bar, place) => {
        const there = found[place];
        const none = !there || inGone(group, new Set(there.removed ?? []));
        bar.style.width = none ? "0" : `${((100 * there.widths[index]) / group.dense).toFixed(2)}%`;
      });
      number.textContent = away ? "removed" : `${point.widths[index] * times} of ${group.dense * times}`;
      name.classList.toggle("gone", away);
      number.classList.toggle("gone", away);
    });
  }

  // -- other targets --------------------------------------------------------------------------------------------------------------------

  /** The best network of another exploration at `limit` of its dense network, or nothing where it has none. */
  const atShare = (other, limit) => other.points.findLast((point) => point.value <= limit * other.dense.value * (1 + 1e-9));

  /** Groups and blocks in which two networks differ. */
  function differences(one, other) {
    const [gone, away] = [one, other].map((point) => new Set(point.removed ?? []));
    const moved = blocks.filter((_, index) => gone.has(index) !== away.has(index)).length;
    const wide = groups.filter(
      (group, index) => !inGone(group, gone) && !inGone(group, away) && one.widths[index] !== other.widths[index],
    ).length;
    return [moved ? `${moved} block${moved > 1 ? "s" : ""}` : "", wide ? `${wide} of ${groups.length} widths` : ""].filter(Boolean).join(", ");
  }

  function moveBeside(point) {
    if (!others.length) return;
    byId("beside-card").hidden = false;
    const host = byId("beside");
    host.textContent = "";
    const table = element(host, "table");
    const head = element(element(table, "thead"), "tr");
    for (const name of ["target", data.words, "of dense", "multiply-adds", "kept", "blocks removed", "differs in"]) {
      element(head, "th", { scope: "col" }, name);
    }
    const body = element(table, "tbody");
    for (const [number, network] of [data, ...others].entries()) {
      const shown = number ? atShare(network, share(point)) : point;
      const row = element(body, "tr");
      const title = element(row, "th", { scope: "row" });
      element(title, "i", { class: number ? `key-beside-${number - 1}` : "key-kept" });
      title.append(number ? network.name : data.target_name);
      if (!shown) {
        element(row, "td", { colspan: 6 }, `nothing this small: its smallest network has ${percent(network.points[0].value / network.dense.value)}`);
        continue;
      }
      const cell = element(row, "td", {}, amount(shown.value));
      if (shown.low != null) element(cell, "small", {}, interval(shown.low, shown.high));
      element(row, "td", {}, percent(shown.value / network.dense.value));
      element(row, "td", {}, count(shown.macs));
      element(row, "td", {}, percent(keptOf(shown, network)));
      element(row, "td", {}, String((shown.removed ?? []).length));
      element(row, "td", {}, number ? differences(point, shown) || "nothing" : "");
    }
  }

  function tile(host, name) {
    const box = element(host, "div", { class: "tile" });
    element(box, "div", { class: "name" }, name);
    return [element(box, "div", { class: "value" }), element(box, "div", { class: "from" })];
  }

  const tiles = {};
  /** Milliseconds whose worth is told: one, or a decimal part of it where the network takes but a few. */
  const step = Math.min(1, 10 ** Math.floor(Math.log10(dense.value / 2)));

  function drawTiles() {
    const host = byId("tiles");
    if (latency) tiles.value = tile(host, "Latency, predicted");
    tiles.macs = tile(host, "Multiply-adds");
    tiles.parameters = tile(host, "Parameters");
    tiles.kept = tile(host, worth === "divergence" ? "Predicted divergence" : "Kept importance");
    tiles.next = tile(host, latency ? `The next ${step} ms buys` : `The next 1 % of ${data.words}`);
    if (blocks.some((block) => block.removable ?? true)) tiles.blocks = tile(host, "Blocks removed");
  }

  function moveTiles(point) {
    const fill = (name, value, from) => tiles[name]?.forEach((node, index) => (node.textContent = [value, from][index]));
    const ofDense = (now, whole) => `${percent(now / whole)} of ${count(whole)}`;
    fill("value", amount(point.value), point.low != null ? interval(point.low, point.high) : `${percent(share(point))} of dense`);
    fill("macs", count(point.macs), ofDense(point.macs, dense.macs));
    fill("parameters", count(point.parameters), ofDense(point.parameters, dense.parameters));
    if (worth === "divergence") fill("kept", exact(lost(point)), `summed over layers; ${percent(kept(point))} avoided`);
    else fill("kept", percent(kept(point)), `of the dense network's ${exact(dense.gain)}`);
    const gain = (point.multiplier * (latency ? step : dense.value / 100)) / (dense.gain || 1);
    const rate = latency ? `${exact(point.multiplier)} per ms` : `${exact(point.multiplier * 1e6)} per million`;
    if (point.multiplier) fill("next", `+${percent(gain, gain < 0.0995 ? 2 : 1)}`, `of the ${worth}; ${rate}`);
    else fill("next", "nothing", "this is the end");
    const removable = blocks.filter((block) => block.removable ?? true).length;
    fill("blocks", String((point.removed ?? []).length), `of ${removable} removable`);
  }

  function chips(host, title, names) {
    if (!names.length) return;
    const line = element(host, "div", { class: "facts" });
    element(line, "b", {}, title);
    const list = element(line, "ul", { class: "chips" });
    names.slice(0, 14).forEach((name) => element(list, "li", {}, name));
    if (names.length > 14) element(list, "li", {}, `and ${names.length - 14} more`);
  }

  function moveBinds(point, removed) {
    const host = byId("binds");
    host.textContent = "";
    const next = points[place + 1];
    if (next) {
      const stay = new Set(next.removed ?? []);
      const back = [...removed].filter((block) => !stay.has(block)).map((block) => `${blocks[block].name} comes back`);
      const grown = groups.filter((group, index) => !inGone(group, removed) && next.widths[index] > point.widths[index]);
      const more = `${amount(next.value - point.value)}${latency ? "" : ` ${data.words}`}`;
      chips(host, `Grows with the next ${more}`, [...back, ...grown.map((group) => group.name)]);
    }
    const standing = (end) =>
      groups
        .filter((group, index) => !inGone(group, removed) && group.choices.length > 1 && point.widths[index] === group.choices.at(end))
        .map((group) => group.name);
    chips(host, "At the smallest width on offer", standing(0));
    chips(host, "Whole: more room would not change them", standing(-1));
    chips(host, "Blocks removed", (point.removed ?? []).map((block) => blocks[block].name));
    const held = blocks.filter((block) => block.removable === false);
    chips(host, "Blocks that must stay", held.map((block) => `${block.name}: ${block.reason ?? ""}`));
  }

  function drawMeasured() {
    const measured = points.map((point, index) => [point, index]).filter(([point]) => point.latency);
    if (!measured.length) return;
    byId("measured-card").hidden = false;
    const table = element(byId("measured"), "table");
    const accuracies = dense.accuracy !== undefined;
    const head = element(element(table, "thead"), "tr");
    const recovered = measured.some(([point]) => point.recovered_accuracy !== undefined);
    const moments = [...(accuracies ? [["accuracy", recovered ? "cut" : "accuracy"]] : []), ...(recovered ? [["recovered_accuracy", "recovered"]] : [])];
    const names = ["network", ...(latency ? ["predicted"] : []), "measured", "of dense", ...moments.map(([, title]) => title)];
    for (const name of names) element(head, "th", { scope: "col" }, name);
    const body = element(table, "tbody");
    for (const [point, index] of [...measured, [dense, -1]]) {
      if (!point.latency) continue;
      const row = element(body, "tr");
      element(row, "th", { scope: "row" }, index < 0 ? "dense" : pick(index));
      if (latency) element(row, "td", {}, amount(point.value));
      const cell = element(row, "td", {}, milliseconds(point.latency.ms));
      element(cell, "small", {}, interval(point.latency.low, point.latency.high));
      element(row, "td", {}, point.latency.ratio != null ? percent(point.latency.ratio) : "–");
      for (const [field] of moments) element(row, "td", {}, point[field] !== undefined ? percent(point[field], 2) : "–");
    }
  }

  // -- taking it ------------------------------------------------------------------------------------------------------------------------

  const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);

  function moveTake() {
    const wanted = pick(place);
    byId("command-part").hidden = !data.command;
    byId("command").textContent = `${data.command} --explore ${quoted(data.file)} --pick ${wanted} -o pruned`;
    const filled = data.python.replace("{file}", () => JSON.stringify(data.file));
    byId("python").textContent = filled.replace("{pick}", () => JSON.stringify(wanted));
  }

  async function copy(button, text) {
    let done = false;
    try {
      await navigator.clipboard.writeText(text.textContent);
      done = true;
    } catch {
      // A page in a frame, or of an old browser, may not write to the clipboard; what is selected can be copied by hand.
      getSelection().selectAllChildren(text);
      done = document.execCommand("copy");
    }
    const label = button.textContent;
    button.textContent = done ? "Copied" : "Selected: press Ctrl+C";
    say(button.textContent);
    setTimeout(() => (button.textContent = label), 1600);
  }

  // -- moving ---------------------------------------------------------------------------------------------------------------------------

  let pending = 0;

  /** What a screen reader hears, once the moving has stopped. */
  function say(text) {
    clearTimeout(pending);
    pending = setTimeout(() => (byId("said").textContent = text), 350);
  }

  function sentence(point) {
    const good = `keeps ${percent(kept(point))} of the importance`;
    const objective = worth === "divergence" ? `predicted divergence ${exact(lost(point))}` : good;
    const count = (point.removed ?? []).length;
    const away = count ? `${count} block${count > 1 ? "s" : ""} removed` : "all blocks stay";
    return `${percent(share(point))} of dense: ${amount(point.value)} ${latency ? "predicted" : data.words}, ${objective}, ${away}`;
  }

  function show(index, { typed = false } = {}) {
    place = Math.min(Math.max(index, 0), points.length - 1);
    const point = points[place];
    const removed = new Set(point.removed ?? []);
    const words = sentence(point);
    byId("slider").value = String(place);
    set(byId("slider"), { "aria-valuetext": words });
    if (!typed) byId("typed").value = pick(place);
    byId("typed").removeAttribute("aria-invalid");
    byId("summary").textContent = words;
    moveTrade(point);
    moveTiles(point);
    moveNetwork(point, removed);
    drawStairs();
    moveWidths(point, removed);
    moveBinds(point, removed);
    moveBeside(point);
    moveTake();
    say(words);
  }

  /** The place of the best network under what was typed: a share, or a value in the resource's own unit. */
  function placeOf(text) {
    const match = /^\s*([\d.]+(?:e[+-]?\d+)?)\s*(%|us|ms|s|[kKMGT])?\s*$/.exec(text.replace(/^\s*(flops|params)\s*=/, ""));
    if (!match || !Number.isFinite(Number(match[1]))) return null;
    const scales = latency ? { us: 1e-3, ms: 1, s: 1e3 } : { k: 1e3, K: 1e3, M: 1e6, G: 1e9, T: 1e12 };
    const unit = match[2] ?? "%";
    const limit = unit === "%" ? (Number(match[1]) / 100) * dense.value : scales[unit] && Number(match[1]) * scales[unit];
    return limit ? points.findLastIndex((point) => point.value <= limit * (1 + 1e-9)) : null;
  }

  function onTyped() {
    const found = placeOf(byId("typed").value);
    if (found === null || found < 0) {
      set(byId("typed"), { "aria-invalid": "true" });
      const least = `the smallest network has ${amount(points[0].value)}, ${percent(share(points[0]), 2)}`;
      const example = byId("hint").textContent.replace("for instance ", "");
      byId("summary").textContent = found === null ? `Not a budget: write ${example}` : `Below what can be reached: ${least}`;
      say(byId("summary").textContent);
      return;
    }
    show(found, { typed: true });
  }

  function start() {
    const slider = byId("slider");
    slider.max = String(points.length - 1);
    byId("hint").textContent = `for instance 50% or ${amount(dense.value / 2).replace("\u00a0", "")}`;
    drawTrade();
    drawTiles();
    drawNetwork();
    drawWidths();
    drawMeasured();
    layers.forEach((layer, index) => element(byId("layer"), "option", { value: index }, layer.name));
    slider.addEventListener("input", () => show(Number(slider.value)));
    byId("less").addEventListener("click", () => show(place - 1));
    byId("more").addEventListener("click", () => show(place + 1));
    byId("typed").addEventListener("input", onTyped);
    byId("typed").addEventListener("change", () => byId("typed").hasAttribute("aria-invalid") || show(place));
    byId("layer").addEventListener("change", (event) => chooseLayer(Number(event.target.value)));
    byId("copy-command").addEventListener("click", () => copy(byId("copy-command"), byId("command")));
    byId("copy-python").addEventListener("click", () => copy(byId("copy-python"), byId("python")));
    let width = document.documentElement.clientWidth;
    addEventListener("resize", () => {
      if (document.documentElement.clientWidth === width) return;
      width = document.documentElement.clientWidth;
      drawTrade();
      show(place);
    });
    const middle = points.findLastIndex((point) => share(point) <= 0.5);
    place = Math.max(middle, 0);
    const dear = layers.map((layer, index) => {
      const axis = outputAxis(layer);
      return [axis < 0 ? -1 : costCurve(layer, dense.widths, NOTHING, axis)(sizeOf(layer.axes[axis], dense.widths, NOTHING)), index];
    });
    chooseLayer(dear.length ? dear.reduce((a, b) => (b[0] > a[0] ? b : a))[1] : 0);
    show(place);
  }

  start();
})();
