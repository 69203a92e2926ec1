// The head atlas: what every head of one or two models is, from their passports (passport.schema.json), to look at,
// compare and select. A widget's module (the default export), and inlined in pages, which call `mount`.

const MEASURES = { // of a head h in a passport p, and whether its scale is logarithmic
  "rank / D": [(h, p) => last(h.rank) / p.model.grid.D],
  "half-life (tokens)": [h => h.half_life, true],
  "nuclear norm": [h => h.norm, true],
  "bits a token without it": [h => h.removal?.bits],
  "rank above its null": [h => h.null && last(h.rank) - (last(h.null.low) + last(h.null.high)) / 2],
  "write strength": [h => h.write],
  "error as int8": [h => h.int8],
  "error as float8": [h => h.fp8],
};
const RAMP = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]]; // cividis
const STEPS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
const MODES = {Look: "Click or arrows: show a head; drag or Shift + arrows: select",
  Compare: "Click or Enter: show a second head beside the first (Shift + click does so, too)",
  Select: "Click, tap or Enter: select one more or less; drag: many (Ctrl + click does so, too)"};
const LOWEST = -160; // decibels, eight decades, at the foot of a spectrum

const STYLE = `.atlas {
  --faint: color-mix(in srgb, currentColor 18%, transparent); --soft: color-mix(in srgb, currentColor 72%, transparent);
  font: 14px/1.4 system-ui, sans-serif; container-type: inline-size;
  & .bar { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center; margin: .5rem 0 }
  & select, & button { font: inherit; color: inherit; background: transparent; border: 1px solid var(--soft); border-radius: 5px; padding: .15rem .6rem; min-height: 1.9rem }
  & select option { color: CanvasText; background: Canvas } & button { cursor: pointer }
  & button[aria-pressed=true] { background: var(--faint); font-weight: 600 }
  & .modes { display: flex } & .modes button { border-radius: 0; margin-left: -1px } & .modes :first-child { border-radius: 5px 0 0 5px } & .modes :last-child { border-radius: 0 5px 5px 0 }
  & .ramp { display: inline-block; width: 7rem; height: .8rem; border-radius: 3px; margin: 0 .4rem; vertical-align: -1px }
  & small, & figcaption, & .hint { color: var(--soft); font-size: .86em } & p { margin: .3rem 0 }
  & .grids, & .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: .4rem 1.6rem }
  & figure { margin: 0; min-width: 0 } & figcaption { font-weight: 600 }
  & [role=grid] { display: grid; gap: 2px; user-select: none } & [role=row] { display: contents }
  & [role=columnheader], & [role=rowheader] { color: var(--soft); font-size: .75em; text-align: center; align-self: center; white-space: nowrap }
  & [role=rowheader] { text-align: right; padding-right: .4em }
  & [role=gridcell] { position: relative; height: 1.6rem; border-radius: 2px; cursor: pointer; font: 11px/1.6rem system-ui; text-align: center; overflow: clip; overflow-clip-margin: 4px; font-variant-numeric: tabular-nums }
  & [role=gridcell].none { background: repeating-linear-gradient(45deg, transparent 0 3px, var(--faint) 3px 4px); cursor: default }
  & .wide [role=gridcell] { height: 1.1rem; font-size: 0; border-radius: 1px } & .wide { gap: 1px }
  & [role=gridcell][aria-selected=true] { box-shadow: inset 0 0 0 2px #000, inset 0 0 0 3px #fff } & .wide [aria-selected=true] { box-shadow: inset 0 0 0 1px #000, inset 0 0 0 2px #fff }
  & [aria-selected=true]::after { content: ""; position: absolute; inset: auto 0 0 0; height: .3rem; background: repeating-linear-gradient(135deg, #fff 0 2px, #000 2px 4px) }
  & [role=gridcell][data-pick] { outline: 2px solid; outline-offset: 1px; z-index: 1; border-radius: 2px } & [role=gridcell][data-pick=B] { outline-style: dashed }
  & :focus-visible { outline: 3px solid #1a86ff; outline-offset: 2px; z-index: 2 }
  & input[type=range] { flex: 1; min-width: 9rem; accent-color: #1a86ff } & .at { font-variant-numeric: tabular-nums; min-width: 17rem }
  & table { border-collapse: collapse; font-variant-numeric: tabular-nums } & table td { padding: .05rem 1rem .05rem 0; text-align: left; border: 0 } & table td + td { text-align: right } & table tr { background: none }
  & dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: 0 1.6rem; margin: .3rem 0 } & dl div { display: flex; justify-content: space-between; border-bottom: 1px solid var(--faint) } & dl div > * { margin: 0; padding: 0; width: auto; font-weight: normal; font-variant-numeric: tabular-nums }
  & .card { border-top: 2px solid var(--soft); padding-top: .4rem; min-width: 0 } & .card.B { border-top-style: dashed } & h3 { font-size: 1.05em; margin: 0 }
  & .parts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .4rem 1.2rem; align-items: start; margin: .2rem 0 }
  & svg { display: block; width: 100%; max-width: 28rem; height: auto; overflow: visible } & svg text { font-size: 11px; fill: var(--soft) } & svg .axis { stroke: var(--faint) }
  & svg .curve { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round } & svg .bound { stroke: var(--soft); stroke-dasharray: 5 3; fill: none } & svg .band { fill: currentColor; stroke: currentColor; stroke-width: 3; stroke-linejoin: round; opacity: .22 } & svg .now { stroke: #1a86ff; stroke-width: 1.5 } & svg circle { fill: #1a86ff }
  & .read { max-height: 13rem; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.65; border: 1px solid var(--faint); border-radius: 5px; padding: .3rem .5rem; font-size: .93em }
  & .read span { border-radius: 2px; cursor: pointer } & .read .lost { text-decoration: underline dotted 2px; text-underline-offset: 3px } & .read .now { outline: 2px solid #1a86ff }
  & code { font-size: .9em; overflow-wrap: anywhere; max-height: 4.5em; overflow: auto } & details { margin-top: .6rem }
}`;

const last = x => x[x.length - 1], same = (a, b) => a && b && a.every((x, i) => x === b[i]);
const shown = x => x == null ? "not measured" : String(Number(x.toPrecision(3)));
const MIB = x => (x / 2 ** 20).toFixed(x < 2 ** 24 ? 2 : 0) + " MiB";
const nearest = (positions, t) => positions.reduce((best, p, i) => Math.abs(p - t) < Math.abs(positions[best] - t) ? i : best, 0);

function draw(parent, tag, attributes = {}, text) {
  const svg = tag === "svg" || parent instanceof SVGElement;
  const e = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  if (text !== undefined) e.textContent = text;
  return parent.appendChild(e);
}

function colour(share) {
  const x = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), i = Math.min(Math.floor(x), RAMP.length - 2);
  return RAMP[i].map((low, c) => Math.round(low + (x - i) * (RAMP[i + 1][c] - low)));
}

/** Draw the passports into an element; `selected` are places [row, head], told to `onSelect` whenever they change. */
export function mount(root, passports, {selected = [], onSelect = () => {}, onLoss = null} = {}) {
  const [{model}] = passports, {L, H, D} = model.grid, positions = passports[0].measured.positions;
  const key = place => place.join("."), cells = new Map(), ids = Math.random().toString(36).slice(2);
  let chosen = new Set(selected.map(key)), picks = [], mode = "Look", t = last(positions), drag = null, anchor = null;
  root.classList.add("atlas");
  root.replaceChildren();
  draw(root, "style", {}, STYLE);

  const bar = draw(root, "div", {class: "bar"}), label = draw(bar, "label", {}, "Colour "), by = draw(label, "select");
  const scale = draw(bar, "span", {class: "hint"});
  const modes = draw(bar, "span", {class: "modes", role: "group", "aria-label": "What a click does"});
  const hint = draw(root, "p", {class: "hint"}), grids = draw(root, "div", {class: "grids"});
  const choice = draw(root, "div", {class: "bar"}), told = draw(choice, "span", {role: "status"});
  const literal = draw(choice, "code"), clear = draw(choice, "button", {type: "button"}, "Clear");
  const ask = onLoss && draw(choice, "button", {type: "button"}, "Loss without them"), cost = draw(choice, "b", {role: "status"});
  const time = draw(root, "div", {class: "bar"}), slider = draw(time, "input", {type: "range", min: 0, max: positions.length - 1, value: positions.length - 1, "aria-label": "Tokens read"});
  const at = draw(time, "span", {class: "at"}), cards = draw(root, "div", {class: "cards"});

  for (const name of Object.keys(MEASURES)) if (passports.some(p => p.heads.some(h => MEASURES[name][0](h, p) != null))) draw(by, "option", {}, name);
  by.onchange = paint;
  for (const name of Object.keys(MODES)) draw(modes, "button", {type: "button", title: MODES[name]}, name);
  [...modes.children].forEach(button => button.onclick = () => { mode = button.textContent; setMode(); });
  clear.onclick = () => choose(new Set());
  slider.oninput = () => { t = positions[slider.value]; detail(); };
  if (ask) ask.onclick = () => { cost.textContent = "…"; onLoss(); };

  passports.forEach((p, which) => {
    const figure = draw(grids, "figure"), held = new Map(p.heads.map(h => [h.layer + "." + h.head, h]));
    if (passports.length > 1) draw(figure, "figcaption", {}, p.model.name);
    const grid = draw(figure, "div", {role: "grid", "aria-multiselectable": true, class: H > 16 ? "wide" : "",
      "aria-label": `${p.model.name}: a row a layer, a column a head. Arrow keys move, Shift selects.`,
      style: `grid-template-columns: max-content repeat(${H}, minmax(0, 1fr))`});
    const heading = draw(grid, "div", {role: "row"}), every = H > 16 ? 4 : 1;
    draw(heading, "span", {role: "columnheader"}, "layer");
    for (let head = 0; head < H; head++) draw(heading, "span", {role: "columnheader"}, head % every ? "" : head);
    p.model.layers.forEach((layer, row) => {
      const line = draw(grid, "div", {role: "row"});
      draw(line, "span", {role: "rowheader"}, layer);
      for (let head = 0; head < H; head++) {
        const h = held.get(layer + "." + head), cell = draw(line, "div", {role: "gridcell"}), place = [which, row, head];
        if (!h) { cell.className = "none"; cell.title = `layer ${layer}, head ${head}: removed`; continue; }
        Object.assign(cell, {place, h, p, tabIndex: -1});
        cells.set(key(place), cell);
      }
    });
    const under = e => { const cell = grid.getRootNode().elementFromPoint(e.clientX, e.clientY)?.closest("[role=gridcell]"); return cell?.place?.[0] === which && grid.contains(cell) ? cell : null; };
    grid.onpointerdown = e => {
      const from = under(e), adds = e.ctrlKey || e.metaKey || mode === "Select";
      drag = from && (e.pointerType === "mouse" || mode === "Select") ? {from, before: adds ? new Set(chosen) : new Set(), moved: false} : null;
    };
    grid.onpointermove = e => {
      if (!e.buttons) drag = null;
      const to = drag && under(e);
      if (!to || (to === drag.from && !drag.moved)) return;
      drag.moved = true;
      choose(between(drag.from.place, to.place, drag.before));
    };
    grid.onclick = e => {
      const cell = e.target.closest("[role=gridcell]"), moved = drag?.moved;
      drag = null;
      if (cell?.place && !moved) act(cell, e);
    };
    grid.onkeydown = e => {
      const step = STEPS[e.key], from = e.target.place;
      if (!from || !(step || e.key === "Enter" || e.key === " ")) return;
      e.preventDefault();
      if (!step) return act(e.target, e);
      let [w, r, c] = from, to;
      do { r += step[0]; c += step[1]; to = cells.get(key([w, r, c])); } while (!to && r >= 0 && c >= 0 && r < L && c < H);
      if (!to) return;
      anchor = e.shiftKey ? anchor ?? from : null;
      if (e.shiftKey) choose(between(anchor, to.place, new Set()));
      mode === "Look" && !e.shiftKey ? pick(to, false) : focusOn(to);
    };
  });

  const between = ([w, r0, c0], [, r1, c1], kept) => {
    const all = new Set(kept);
    for (let r = Math.min(r0, r1); r <= Math.max(r0, r1); r++)
      for (let c = Math.min(c0, c1); c <= Math.max(c0, c1); c++) if (cells.has(key([w, r, c]))) all.add(key([r, c]));
    return all;
  };
  function act(cell, e) {
    const place = key(cell.place.slice(1));
    if (mode !== "Select" && !e.ctrlKey && !e.metaKey) return pick(cell, e.shiftKey || mode === "Compare");
    focusOn(cell);
    const all = new Set(chosen);
    if (!all.delete(place)) all.add(place);
    choose(all);
  }
  function choose(places, silent = false) {
    chosen = places;
    for (const cell of cells.values()) cell.setAttribute("aria-selected", chosen.has(key(cell.place.slice(1))));
    const listed = list();
    told.textContent = listed.length ? `${listed.length} head${listed.length > 1 ? "s" : ""} selected` : "No head selected: drag over some.";
    literal.textContent = listed.length ? JSON.stringify(listed).replaceAll(",", ", ") : "";
    literal.title = "places [row, head], as atlas.show(…, selected=…) takes them";
    clear.hidden = !listed.length;
    if (ask) ask.hidden = !listed.length;
    cost.textContent = "";
    if (!silent) onSelect(listed);
  }
  const list = () => [...chosen].map(k => k.split(".").map(Number)).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  function focusOn(cell, really = true) {
    for (const other of cells.values()) other.tabIndex = -1;
    cell.tabIndex = 0;
    if (really) cell.focus();
  }
  function pick(cell, second, really = true) {
    const twin = passports.length > 1 && cells.get(key([1 - cell.place[0], ...cell.place.slice(1)]));
    picks = second && picks.length && !same(picks[0].place, cell.place) ? [picks[0], cell] : twin ? [cell, twin] : [cell];
    for (const other of cells.values()) other.removeAttribute("data-pick");
    picks.forEach((each, i) => each.setAttribute("data-pick", "AB"[i]));
    focusOn(cell, really);
    detail();
  }
  function setMode() {
    for (const button of modes.children) button.setAttribute("aria-pressed", button.textContent === mode);
    hint.textContent = MODES[mode] + ".";
    grids.style.touchAction = mode === "Select" ? "none" : "auto";
  }
  function paint() {
    const [value, log] = MEASURES[by.value], scaled = x => log ? Math.log(Math.max(x, 1e-9)) : x;
    const known = [...cells.values()].map(c => value(c.h, c.p)).filter(x => x != null);
    const [low, high] = by.value === "rank / D" ? [0, 1] : [Math.min(...known), Math.max(...known)];
    scale.replaceChildren(shown(low), draw(scale, "span", {class: "ramp", style: `background: linear-gradient(90deg, ${RAMP.map(c => `rgb(${c})`).join(", ")})`}), shown(high) + (log ? " (logarithmic)" : ""));
    for (const cell of cells.values()) {
      const x = value(cell.h, cell.p), share = x == null ? null : (scaled(x) - scaled(low)) / (scaled(high) - scaled(low) || 1);
      const rgb = share === null ? [128, 128, 128] : colour(share), name = `layer ${cell.h.layer}, head ${cell.h.head}: ${by.value} `;
      cell.style.background = `rgb(${rgb})`;
      cell.replaceChildren();
      if (H <= 16 && x != null) draw(cell, "span", {style: `color: ${rgb[1] > 125 ? "#000" : "#fff"}`}, x.toFixed(Math.abs(x) < 1 ? 2 : Math.abs(x) < 10 ? 1 : 0));
      cell.title = name + shown(x);
      cell.setAttribute("aria-label", name + (cell.textContent || shown(x))); // who names what he sees must be understood
    }
  }
  function detail() {
    const token = passports[0].text?.tokens[t - 1];
    at.textContent = `after ${t} token${t > 1 ? "s" : ""}` + (token === undefined ? "" : `, the last one “${token.trim() || "␣"}”`);
    slider.setAttribute("aria-valuetext", at.textContent);
    cards.replaceChildren();
    picks.forEach((cell, i) => card(draw(cards, "section", {class: "card " + "AB"[i], "aria-labelledby": ids + i}), cell, i));
  }
  function card(into, {h, p}, i) {
    const P = p.measured.positions, now = nearest(P, t), d = p.model.grid.D, title = `Layer ${h.layer}, head ${h.head}: ${h.stratum} rank`;
    draw(into, "h3", {id: ids + i}, title + (passports.length > 1 ? ` · ${p.model.name}` : ""));
    const parts = draw(into, "div", {class: "parts"}), X = x => Math.log2(x) / (Math.log2(last(P)) || 1);
    const ticks = []; for (let x = 1; x <= last(P); x *= 4) ticks.push(x);
    plot(draw(parts, "div"), `effective rank by tokens read: ${shown(h.rank[now])} of ${d} after ${P[now]}${h.null ? "; grey: its null" : ""}`, {
      xs: P.map(X), ys: h.rank.map(y => y / d), band: h.null && [h.null.low, h.null.high].map(b => b.map(y => y / d)), bound: [...P.map(x => [X(x), Math.min(x, d) / d])],
      left: [0, d / 2, d].map(y => [y / d, y]), below: ticks.map(x => [X(x), x]), now: [X(P[now]), h.rank[now] / d]});
    const s = h.spectra[now], place = j => 1 + j * (d - 1) / (s.length - 1 || 1), eps = 20 * Math.log10(p.measured.eps), height = y => Math.max(0, 1 - y / LOWEST);
    plot(draw(parts, "div"), `singular values σᵢ / σ₁ after ${P[now]} tokens`, {
      xs: s.map((_, j) => (place(j) - 1) / (d - 1 || 1)), ys: s.map(height), bound: [[0, height(eps)], [1, height(eps)]],
      left: [[1, "1"], [height(-80), "1e-4"], [0, "1e-8"]], below: [1, d / 2, d].map(x => [(x - 1) / (d - 1 || 1), x])});
    const numbers = draw(into, "dl");
    for (const [name, [value]] of Object.entries(MEASURES)) if (value(h, p) != null) {
      const row = draw(numbers, "div"), interval = name.startsWith("bits") && h.removal.low != null ? ` [${shown(h.removal.low)}, ${shown(h.removal.high)}]` : "";
      draw(row, "dt", {}, name); draw(row, "dd", {}, shown(value(h, p)) + interval);
    }
    if (p.text) read(into, p.text, p.text.gain[p.heads.indexOf(h)]);
  }
  function read(into, text, gain) {
    draw(into, "p", {class: "hint"}, "The text, by how much the state gained (blue) or lost (orange, underlined) at each token: its Frobenius norm, in percent of the largest.");
    const most = gain.reduce((m, x) => Math.max(m, Math.abs(x)), 1), box = draw(into, "div", {class: "read", tabindex: 0, "aria-label": "The text that the head read"});
    text.tokens.forEach((token, i) => {
      const share = Math.round(75 * Math.sqrt(Math.abs(gain[i]) / most)), hue = gain[i] < 0 ? "#e8871e" : "#2f7fe0";
      const span = draw(box, "span", {class: (gain[i] < 0 ? "lost" : "") + (i === t - 1 ? " now" : ""), title: `token ${i + 1}: ${gain[i] > 0 ? "+" : ""}${gain[i]} %`, style: gain[i] ? `background: color-mix(in srgb, ${hue} ${share}%, transparent)` : ""}, token);
      span.onclick = () => { slider.value = nearest(positions, i + 1); slider.oninput(); };
    });
  }

  const how = draw(root, "details");
  draw(how, "summary", {}, "What it costs, how it was measured");
  for (const {model: m, measured} of passports) {
    const count = s => passports.find(p => p.model === m).heads.filter(h => h.stratum === s).length;
    draw(how, "p", {}, `${m.name}: ${m.class}, ${m.parameters.toLocaleString("en")} parameters; heads in ${L} recurrent layers, ${m.grid.K} × ${m.grid.V} each: ${["low", "middle", "high"].map(s => `${count(s)} of ${s} rank`).join(", ")}. Grey bands: random writes under the head's own decays; dashed: min(t, D), and ε.`);
    const table = draw(how, "table"), line = words => { const row = draw(table, "tr"); for (const word of words) draw(row, "td", {}, word); };
    line(["cache of a sequence, tokens", "states", "all of it", "share of states"]);
    for (const b of m.bytes) line([b.tokens.toLocaleString("en"), MIB(b.state), MIB(b.cache), (100 * b.state / b.cache).toFixed(1) + " %"]);
    draw(how, "p", {}, `Read: ${measured.sequences} × ${measured.length} tokens (SHA-256 ${measured.tokens.slice(0, 12)}…), ε = ${measured.eps}, seed ${measured.seed}; weights ${m.weights ? m.weights.slice(0, 12) + "…" : "without a hash"}; ${Object.entries(measured.versions).map(v => v.join(" ")).join(", ")}.`);
  }
  setMode();
  paint();
  choose(chosen, true);
  if (cells.size) pick(cells.values().next().value, false, false);
  return {select: places => choose(new Set(places.map(key)), true), tell: words => cost.textContent = words};
}

function plot(parent, label, {xs, ys, band, bound, left, below, now}) {
  draw(parent, "p", {class: "hint"}, label);
  const svg = draw(parent, "svg", {viewBox: "0 0 330 160", role: "img", "aria-label": label}), X = x => 32 + 290 * x, Y = y => 138 - 130 * y;
  const points = (x, y) => x.map((each, i) => [X(each), Y(y[i] ?? 0)]).join(" ");
  for (const [y, text] of left) { draw(svg, "line", {class: "axis", x1: X(0), x2: X(1), y1: Y(y), y2: Y(y)}); draw(svg, "text", {x: 27, y: Y(y) + 4, "text-anchor": "end"}, text); }
  for (const [x, text] of below) draw(svg, "text", {x: X(x), y: 154, "text-anchor": "middle"}, text);
  if (band) draw(svg, "polygon", {class: "band", points: points([...xs, ...[...xs].reverse()], [...band[1], ...[...band[0]].reverse()])});
  draw(svg, "polyline", {class: "bound", points: points(bound.map(b => b[0]), bound.map(b => b[1]))});
  draw(svg, "polyline", {class: "curve", points: points(xs, ys)});
  if (now) { draw(svg, "line", {class: "now", x1: X(now[0]), x2: X(now[0]), y1: Y(0), y2: Y(1)}); draw(svg, "circle", {cx: X(now[0]), cy: Y(now[1]), r: 4}); }
}

export default {
  render({model, el}) {
    const options = {selected: model.get("places"), onSelect: places => { model.set("places", places); model.save_changes(); }};
    if (model.get("answers")) options.onLoss = () => { model.set("asked", model.get("asked") + 1); model.save_changes(); };
    const atlas = mount(el.appendChild(document.createElement("div")), model.get("passports"), options);
    model.on("change:places", () => atlas.select(model.get("places")));
    model.on("change:told", () => atlas.tell(model.get("told")));
  },
};
