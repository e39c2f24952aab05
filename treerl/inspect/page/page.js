"use strict";
// A tree of spans as lines that are drawn only where they can be seen. All text of the model goes into the
// page through textContent; nothing here builds markup out of data.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { nodes, header } = data.tree;
  const byRow = new Map(nodes.map((node) => [node.row, node]));
  const LINE = 24;
  const at = (id) => document.getElementById(id);
  const state = { row: 0, colour: data.colour, heat: "entropy", find: "", right: false, folded: new Set() };
  let lines = [], lineOf = new Map(), hits = [], hitRows = new Set();

  for (const node of nodes) node.children = [];
  for (const node of nodes) if (node.row !== 0) byRow.get(node.parent).children.push(node.row);
  for (const node of nodes) node.words = visible(node.text);

  function visible(text) {
    return text.replace(/[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, (sign) => {
      if (sign === "\n") return "⏎";
      if (sign === "\t") return "⇥";
      const code = sign.charCodeAt(0);
      return code < 32 ? String.fromCharCode(0x2400 + code) : "�";
    });
  }

  function element(name, kind, text) {
    const made = document.createElement(name);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function plural(count, one, many) {
    return `${count.toLocaleString("en")} ${count === 1 ? one : many || one + "s"}`;
  }

  // Colour --------------------------------------------------------------------------------------------------

  function level(scale, value) {
    if (value === null || value === undefined) return 0;
    const most = data.ramps.rising.length;
    if (scale.middle === null) {
      const share = (value - scale.low) / (scale.high - scale.low || 1);
      return Math.min(most - 1, Math.floor(Math.max(0, share) * most));
    }
    const reach = (value > scale.middle ? scale.high : scale.low) - scale.middle;
    const share = reach ? Math.min(1, Math.max(0, (value - scale.middle) / reach)) : 0;
    const found = Math.min(most - 1, Math.floor(share * most + 0.5));
    return value > scale.middle ? found : -found;
  }

  function paint(target, scale, value) {
    const found = level(scale, value);
    const ramp = scale.middle === null ? data.ramps.rising : found < 0 ? data.ramps.falling : data.ramps.above;
    const [ink, fill] = ramp[Math.abs(found)];
    if (fill) { target.style.color = ink; target.style.background = fill; }
  }

  function written(scale, value) {
    if (value === null || value === undefined) return "-";
    if (scale.whole) return value.toLocaleString("en", { maximumFractionDigits: 0 });
    const text = value.toFixed(2);
    return scale.signed && value >= 0 ? "+" + text : text;
  }

  const shadeOf = (name) => data.shades.find((shade) => shade.name === name) || data.shades[0];

  function drawScale() {
    const shade = shadeOf(state.colour), place = at("scale");
    drawTitles();
    place.replaceChildren(element("span", "quiet", shade.legend));
    for (let i = 0; i <= 4; i++) {
      const value = shade.low + (i / 4) * (shade.high - shade.low);
      const tick = element("span", "", written(shade, value));
      paint(tick, shade, value);
      place.append(tick);
    }
  }

  // Lines ---------------------------------------------------------------------------------------------------

  function outline() {
    lines = [];
    const stack = [[0, 0]];
    while (stack.length) {
      const [row, depth, hidden] = stack.pop();
      if (hidden) { lines.push({ row, depth, hidden }); continue; }
      const node = byRow.get(row);
      lines.push({ row, depth });
      if (state.folded.has(row)) continue;
      const shown = node.children.filter((c) => !state.right || byRow.get(c).right_leaves > 0);
      const left = node.children.filter((c) => state.right && byRow.get(c).right_leaves === 0);
      const below = shown.length + (left.length ? 1 : 0) > 1 ? depth + 1 : depth;
      if (left.length) stack.push([row, below, left]);
      for (let i = shown.length - 1; i >= 0; i--) stack.push([shown[i], below]);
    }
    lineOf = new Map(lines.map((line, index) => [line.hidden ? -1 : line.row, index]));
    at("rows").style.height = lines.length * LINE + "px";
    at("shown").textContent = `${plural(lines.filter((l) => !l.hidden).length, "span")} of ` +
      `${nodes.length.toLocaleString("en")} shown`;
    draw();
  }

  function spansBelow(row) {
    let count = 0;
    const stack = [...byRow.get(row).children];
    while (stack.length) { count++; stack.push(...byRow.get(stack.pop()).children); }
    return count;
  }

  function answerOf(node) {
    if (node.outcome === null) return "";
    if (node.outcome !== "scored") return node.outcome;
    const odd = node.reward === 0 || node.reward === 1 ? "" : ` (${node.reward})`;
    return "→ " + (node.answer === null ? "no answer" : visible(node.answer)) + odd;
  }

  // q and visits always, and what colour carries where it is neither.
  function figures(node, shade) {
    const shades = [shadeOf("q"), shadeOf("visits")];
    if (!shades.includes(shade)) shades.push(shade);
    return shades.map((each) => {
      const cell = element("span", "figure " + each.name.split(" ")[0]);
      if (!node) return cell;
      cell.textContent = written(each, each.values[node.row]);
      if (each === shade) paint(cell, each, each.values[node.row]);
      return cell;
    });
  }

  function drawTitles() {
    const names = ["q", "visits"];
    if (!names.includes(state.colour)) names.push(state.colour);
    at("titles").replaceChildren(...names.map((name) => element("span", "figure " + name.split(" ")[0],
      name.split(" ").pop())), element("span", "words", "span"));
  }

  function drawLine(line, index) {
    const kinds = ["row"], node = byRow.get(line.row), shade = shadeOf(state.colour);
    if (line.hidden) kinds.push("elided");
    else {
      if (line.row === state.row) kinds.push("chosen");
      if (node.best) kinds.push("best");
      if (hitRows.has(line.row)) kinds.push("found");
    }
    const made = element("div", kinds.join(" "));
    made.style.top = index * LINE + "px";
    made.dataset.index = index;
    const cells = figures(line.hidden ? null : node, shade);
    const guide = element("span", "guide");
    guide.style.width = 16 * Math.min(line.depth, 40) + "px";
    if (line.hidden) {
      const spans = line.hidden.reduce((sum, row) => sum + 1 + spansBelow(row), 0);
      const words = `… ${plural(line.hidden.length, "branch", "branches")} without a right leaf ` +
        `(${plural(spans, "span")})`;
      made.append(...cells, guide, element("span", "words", words));
      return made;
    }
    const folded = state.folded.has(line.row);
    const fold = element("span", "fold", node.children.length ? (folded ? "▸" : "▾") : "");
    const mark = element("span", "mark" + ({ "◆": " right", "◇": " wrong", "▲": " wrong" }[node.mark] || ""),
      node.mark);
    const words = element("span", "words", line.row === 0 ? visible(data.tree.question) : node.words);
    const end = folded ? `⊞ ${plural(spansBelow(line.row), "span")}, ` +
      `${node.right_leaves}/${node.leaves} right` : answerOf(node);
    made.append(...cells, guide, fold, mark, words, element("span", "answer", end));
    return made;
  }

  function draw() {
    const box = at("tree"), first = Math.max(0, Math.floor(box.scrollTop / LINE) - 10);
    const last = Math.min(lines.length, Math.ceil((box.scrollTop + box.clientHeight) / LINE) + 10);
    const made = [];
    for (let index = first; index < last; index++) made.push(drawLine(lines[index], index));
    at("rows").replaceChildren(...made);
  }

  function reveal(row) {
    for (let up = byRow.get(row).parent; up >= 0; up = byRow.get(up).parent) state.folded.delete(up);
    if (state.right && byRow.get(row).right_leaves === 0) setRight(false);
    outline();
  }

  function choose(row) {
    if (!lineOf.has(row)) reveal(row);
    state.row = row;
    const box = at("tree"), top = lineOf.get(row) * LINE;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + LINE > box.scrollTop + box.clientHeight) box.scrollTop = top + LINE - box.clientHeight;
    draw();
    drawDetail();
    remember();
  }

  function toggle(row) {
    if (!byRow.get(row).children.length) return;
    if (!state.folded.delete(row)) state.folded.add(row);
    outline();
  }

  // Detail --------------------------------------------------------------------------------------------------

  function facts(node) {
    const out = [["opened", node.origin + (node.row === 0 ? "" : `, below span ${node.parent}`)]];
    out.push(["ends", node.children.length > 1 ? `┊ cut point, ${node.children.length} branches go on`
      : node.children.length ? "one span goes on" : { stop: "by a stop token", length: "at the length limit" }[
        node.finish] || "open"]);
    if (node.outcome !== null) {
      const parsed = node.answer === null ? "no answer found" : `parsed ${JSON.stringify(visible(node.answer))}`;
      const reward = node.reward === null ? "" : `, reward ${node.reward}`;
      out.push(["verdict", `${node.outcome}${reward}, ${parsed}; truth ${visible(data.tree.truth) || "-"}`]);
      if (Object.keys(node.detail).length) out.push(["detail", visible(JSON.stringify(node.detail))]);
    }
    for (const other of node.draw.judgements) {
      out.push([other.verifier, `${other.outcome}, reward ${other.reward}; version ${other.version}`]);
    }
    const draw = node.draw;
    if (draw.policy !== undefined) {
      out.push(["policy", `${draw.policy} version ${draw.version}`]);
      out.push(["sampler", Object.entries(draw.sampler).map(([k, v]) => `${k} ${v}`).join(", ") || "unknown"]);
      out.push(["from", draw.cached ? `the cache: tree ${draw.source_tree} of run ${draw.source_run}`
        : `run ${header.run}, step ${header.step}, draw seed ${draw.seed}`]);
    }
    return out;
  }

  function heatScale(name) {
    if (name === "entropy") return { low: 0, high: 2, middle: null };
    if (name === "logprob") return { low: 0, high: -3, middle: null };
    return shadeOf(name);
  }

  function drawDetail() {
    const node = byRow.get(state.row), place = at("detail");
    const title = element("h2", "", `${node.mark} span ${node.row}`);
    const figures = [`q ${written({ signed: true }, node.q)}`, `n ${node.visits.toLocaleString("en")}`,
      plural(node.tokens, "token")];
    if (node.children.length) figures.push(`${node.right_leaves}/${node.leaves} right below`);
    const list = element("dl");
    for (const [name, value] of facts(node)) list.append(element("dt", "", name), element("dd", "", value));
    place.replaceChildren(title, element("div", "quiet", figures.join(" · ")), list, heatChoice(node),
      heatText(node), highest(node));
    place.scrollTop = 0;
  }

  const columnsOf = (node) => Object.keys(node.columns).filter((name) => name !== "text" && name !== "id");

  // A prompt has fewer columns than a span that was drawn.
  const heatOf = (node) => (state.heat in node.columns ? state.heat : columnsOf(node)[0]);

  function heatChoice(node) {
    const label = element("label", "", "tokens by "), select = element("select");
    select.id = "heat";
    for (const name of columnsOf(node)) select.append(new Option(name, name, false, name === heatOf(node)));
    select.addEventListener("change", () => { state.heat = select.value; drawDetail(); remember(); });
    label.append(select);
    return columnsOf(node).length ? label : element("span");
  }

  function heatText(node) {
    const place = element("div", "text"), above = [];
    for (let up = node.parent; up >= 0; up = byRow.get(up).parent) above.push(byRow.get(up));
    for (const span of above.reverse()) {
      place.append(element("span", "above", visible(span.text).replaceAll("⏎", "⏎\n")));
      if (span.children.length > 1) place.append(element("span", "cut", "┊"));
    }
    const heat = heatOf(node), values = node.columns[heat] || [], scale = heatScale(heat);
    node.columns.text.forEach((text, index) => {
      const token = element("span", "token", visible(text).replaceAll("⏎", "⏎\n") || "∅");
      if (values.length) paint(token, scale, values[index]);
      const told = [`token ${index}`, `id ${node.columns.id[index]}`];
      for (const name of columnsOf(node)) told.push(`${name} ${node.columns[name][index] ?? "unknown"}`);
      token.title = told.join("\n");
      place.append(token);
    });
    if (node.children.length > 1) place.append(element("span", "cut", "┊"));
    return place;
  }

  function highest(node) {
    const heat = heatOf(node), values = node.columns[heat] || [], table = element("table"), head = element("tr");
    const order = values.map((_, i) => i).filter((i) => values[i] !== null)
      .sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, 5);
    if (!order.length) return element("div", "quiet", `no ${heat} of these tokens is known`);
    head.append(element("th", "number", "place"), element("th", "", "token"),
      element("th", "number", heat));
    table.append(head);
    for (const index of order) {
      const line = element("tr");
      line.append(element("td", "number", index), element("td", "", JSON.stringify(node.columns.text[index])),
        element("td", "number", values[index].toFixed(3)));
      table.append(line);
    }
    return table;
  }

  // Finding, keys, address ----------------------------------------------------------------------------------

  function find(text) {
    state.find = text;
    const wanted = text.toLowerCase();
    hits = !wanted ? [] : nodes.filter((node) => node.text.toLowerCase().includes(wanted) ||
      (node.answer || "").toLowerCase().includes(wanted)).map((node) => node.row);
    hitRows = new Set(hits);
    at("hits").textContent = wanted ? plural(hits.length, "hit") : "";
    draw();
  }

  function step(rows, by) {
    if (!rows.length) return;
    const order = new Map(nodes.map((node, index) => [node.row, index])), here = order.get(state.row);
    const ahead = by > 0 ? rows.find((row) => order.get(row) > here)
      : [...rows].reverse().find((row) => order.get(row) < here);
    choose(ahead ?? rows[by > 0 ? 0 : rows.length - 1]);
  }

  function setRight(on) {
    state.right = on;
    at("right").setAttribute("aria-pressed", on);
  }

  function setAll(folded) {
    const inner = nodes.filter((node) => node.children.length && node.row !== 0);
    state.folded = new Set(folded ? inner.map((node) => node.row) : []);
    outline();
    choose(lineOf.has(state.row) ? state.row : 0);
  }

  function toggleRight() {
    setRight(!state.right);
    outline();
    choose(lineOf.has(state.row) ? state.row : 0);
    remember();
  }

  const leaves = () => nodes.filter((node) => node.mark === "◆").map((node) => node.row);

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.id === "find";
    if (typing) {
      if (event.key === "Enter") step(hits, event.shiftKey ? -1 : 1);
      if (event.key === "Escape") at("tree").focus();
      return;
    }
    if (event.target.tagName === "SELECT" || event.target.tagName === "BUTTON") return;
    const index = lineOf.get(state.row), node = byRow.get(state.row);
    const move = (by) => {
      let to = index + by;
      while (lines[to] && lines[to].hidden) to += by;
      if (lines[to]) choose(lines[to].row);
    };
    const keys = {
      ArrowDown: () => move(1), ArrowUp: () => move(-1), j: () => move(1), k: () => move(-1),
      ArrowRight: () => (state.folded.has(node.row) ? toggle(node.row) : move(1)),
      ArrowLeft: () => (node.children.length && !state.folded.has(node.row) ? toggle(node.row)
        : node.row !== 0 && choose(node.parent)),
      Enter: () => toggle(node.row), " ": () => toggle(node.row),
      "/": () => at("find").focus(), n: () => step(leaves(), 1), N: () => step(leaves(), -1), c: toggleRight,
    };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  }

  function remember() {
    const kept = new URLSearchParams({ row: state.row, colour: state.colour, heat: state.heat });
    if (state.find) kept.set("find", state.find);
    if (state.right) kept.set("right", "1");
    history.replaceState(null, "", "#" + kept);
  }

  function recall() {
    const kept = new URLSearchParams(location.hash.slice(1));
    state.colour = shadeOf(kept.get("colour") || data.colour).name;
    state.heat = kept.get("heat") || "entropy";
    setRight(kept.get("right") === "1");
    at("colour").value = state.colour;
    at("find").value = kept.get("find") || "";
    outline();
    find(at("find").value);
    drawScale();
    const row = Number(kept.get("row"));
    choose(byRow.has(row) ? row : 0);
  }

  // Beginning -----------------------------------------------------------------------------------------------

  const root = byRow.get(0), tree = data.tree;
  at("question").textContent = visible(tree.question || root.text).replaceAll("⏎", "\n");
  at("figures").textContent = [tree.truth ? `truth ${visible(tree.truth)}` : "no truth given",
    `${root.right_leaves}/${root.leaves} right`, plural(nodes.length, "span"),
    `${plural(tree.generated, "token")} drawn`, `ended: ${tree.meta.exit || "unknown"}`].join(" · ");
  at("origin").textContent = [`tree ${header.tree} of run ${header.run}, step ${header.step}`,
    header.search, header.estimator, header.model, header.seed !== null && `seed ${header.seed}`,
    header.made_by.treerl && `treerl ${header.made_by.treerl}`,
    header.git_commit && `commit ${header.git_commit.slice(0, 10)}`].filter(Boolean).join(" · ");
  for (const shade of data.shades) at("colour").append(new Option(shade.name, shade.name));
  at("colour").addEventListener("change", () => {
    state.colour = at("colour").value;
    drawScale();
    draw();
    remember();
  });
  at("find").addEventListener("input", () => { find(at("find").value); remember(); });
  at("right").addEventListener("click", toggleRight);
  at("open").addEventListener("click", () => setAll(false));
  at("close").addEventListener("click", () => setAll(true));
  at("rows").addEventListener("click", (event) => {
    const made = event.target.closest(".row");
    const line = made && lines[Number(made.dataset.index)];
    if (!line || line.hidden) return;
    if (event.target.classList.contains("fold")) toggle(line.row);
    choose(line.row);
  });
  at("tree").addEventListener("scroll", draw, { passive: true });
  addEventListener("resize", draw);
  addEventListener("hashchange", recall);
  document.addEventListener("keydown", key);
  recall();
  at("tree").focus();
})();
