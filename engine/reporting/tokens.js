"use strict";

// The token view: a passage as text, shaded token by token; a token's rows on a click, Enter or the arrow keys.
(() => {
  const holder = document.getElementById("token-data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent), view = document.getElementById("token-view");
  const HOW = ["no row", "same token", "split: the source writes it in pieces", "the source's next token goes on",
    "inside a token of the source"];
  const SHADES = { loss: ["the target's loss", "costs", 8], gain: ["gain of the teacher", "gains", 4] };
  // A plan's passages have neither a step nor a reason.
  const nameOf = ({ step, passage, why }) => [step ? `step ${step}: ${passage}` : passage, why].filter(Boolean).join(", ");
  const chosen = { passage: nameOf(data.passages[0]), row: null, shade: "loss", ...memory.read().tokens };
  // A long run shows fewer of its early steps: what was chosen may be gone after a reload.
  if (!chosenPassage()) Object.assign(chosen, { passage: nameOf(data.passages[0]), row: null });

  function chosenPassage() {
    return data.passages.find((passage) => nameOf(passage) === chosen.passage);
  }

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name in element && name !== "style") element[name] = value; else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  const text = (id) => data.texts[id] ?? "id " + id;
  const visible = (id) => text(id).replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";
  const number = (value, digits = 3) => (value === null || value === undefined ? "-" : value.toFixed(digits));
  const percent = (value) => (100 * value).toFixed(value < 0.0995 ? 2 : 1) + " %";

  // One hue and its strength say how much, and a bar below the token says it again without colour.
  function shade(token, value, most) {
    const strength = Math.max(0, Math.min(1, value / most));
    token.style.setProperty("--strength", (85 * strength).toFixed(0) + "%");
    token.style.setProperty("--bar", (100 * strength).toFixed(0) + "%");
  }

  function tokenElements(passage) {
    const [, field, most] = SHADES[chosen.shade];
    return passage.tokens.map((id, row) => {
      const shown = text(id).replace(/\n/g, "↵\n") || "∅";
      const place = { id: "token-" + row, className: "token", tabIndex: row === (chosen.row ?? 0) ? 0 : -1 };
      const token = make("span", place, shown);
      token.setAttribute("role", "button");
      token.setAttribute("aria-pressed", String(row === chosen.row));
      token.title = SHADES[chosen.shade][0] + ": " + number(passage[field][row]) + " nats";
      token.dataset.row = row;
      shade(token, passage[field][row], most);
      return token;
    });
  }

  function entries(row, label) {
    if (!row) return [make("td", { colSpan: 6, className: "none" }, "no row")];
    const [ids, probs] = row, others = Math.max(0, 1 - probs.reduce((sum, p) => sum + p, 0));
    const cells = ids.map((id, place) => make("td", id === label ? { className: "label" } : {},
      make("code", {}, visible(id)), make("span", { className: "p" }, percent(probs[place]))));
    while (cells.length < 5) cells.push(make("td"));
    return [...cells, make("td", { className: "p" }, percent(others))];
  }

  function line(name, about, row, label, isWinner = false) {
    const title = make("th", { scope: "row" }, (isWinner ? "★ " : "") + name, make("small", {}, about));
    return make("tr", isWinner ? { className: "winner" } : {}, title, ...entries(row, label));
  }

  // Who won and why, in words.
  function verdict(passage, row) {
    if (!passage.fused[row]) return "No source has a row here: the token is learned from the text alone.";
    const weights = passage.weights[row];
    const ranked = data.sources.map((name, index) => [name, weights[index], passage.cross_entropy[index]])
      .filter(([, weight]) => weight > 0).sort((one, other) => other[1] - one[1]);
    const said = ranked.map(([name, weight, cost]) =>
      `${name} ${percent(weight)} (${number(cost)} nats per byte in the passage)`).join(", ");
    return `Weights by the rule ${data.rule}: ${said}.`;
  }

  // Mass that a row has not kept, or that maps to no target token.
  const rest = (row) => (row ? " · rest mass " + percent(row[2]) : "");

  // The number of the one source with the highest weight; -1 where several share it or none has a row.
  function winner(passage, row) {
    const weights = passage.weights[row], highest = Math.max(...weights);
    return passage.fused[row] && weights.filter((weight) => weight === highest).length === 1
      ? weights.indexOf(highest) : -1;
  }

  function sourceLine(passage, index, row) {
    const source = passage.sources[index];
    const about = `${HOW[source.how[row]]} · label ${number(source.cost[row])} nats${rest(source.rows[row])}`;
    return line(data.sources[index], about, source.rows[row], passage.tokens[row], index === winner(passage, row));
  }

  function table(passage, row) {
    const label = passage.tokens[row], fused = passage.fused[row];
    const heads = ["", "1", "2", "3", "4", "5", "others"].map((name) => make("th", { scope: "col" }, name));
    const gain = passage.gains[row] === null ? "" : " · gain " + number(passage.gains[row]);
    const about = `label ${number(passage.costs[row])} nats${gain}`;
    const lines = [
      ...data.sources.map((_, index) => sourceLine(passage, index, row)),
      line("fused", "the teacher" + rest(fused), fused, label),
      line("target", about, passage.own[row], label),
    ];
    return make("div", { className: "scroll" }, make("table", { className: "rows" },
      make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...lines)));
  }

  function details(passage) {
    if (chosen.row === null) {
      return make("div", { className: "details", id: "token-details" }, make("p", {}, "Choose a token."));
    }
    const label = passage.tokens[chosen.row];
    const heading = make("p", {}, "After all text before it, the next token is ", make("code", {}, visible(label)), ". ",
      verdict(passage, chosen.row));
    return make("div", { className: "details", id: "token-details" }, heading, table(passage, chosen.row));
  }

  // The controls stay while what they choose is drawn again: the one in use keeps the focus.
  const passages = make("select", { id: "token-passage" }), shades = make("select", { id: "token-shade" });
  const shownPassage = make("div");
  passages.append(...data.passages.map(nameOf).map((name) => make("option", { value: name }, name)));
  passages.addEventListener("change", () => choose({ passage: passages.value, row: null }));
  shades.addEventListener("change", () => choose({ shade: shades.value }));
  view.replaceChildren(make("p", { className: "controls" }, make("label", {}, "Passage ", passages), " ",
    make("label", {}, "Shaded by ", shades)), shownPassage);

  // A passage of a plan has no gains. Its shades are offered again only where they are others: a select loses its place.
  function setControls(passage) {
    const known = Object.keys(SHADES).filter((name) => passage[SHADES[name][1]].some((value) => value !== null));
    if ([...shades.options].map((option) => option.value).join() !== known.join()) {
      shades.replaceChildren(...known.map((name) => make("option", { value: name }, SHADES[name][0])));
    }
    if (!known.includes(chosen.shade)) chosen.shade = "loss";
    passages.value = chosen.passage;
    shades.value = chosen.shade;
  }

  function draw(focus = false) {
    const passage = chosenPassage();
    setControls(passage);
    const tokens = tokenElements(passage);
    const before = make("span", { className: "before" }, passage.before.map(text).join(""));
    const shown = make("div", { className: "passage" }, before, ...tokens);
    shown.addEventListener("click", (event) => {
      const token = event.target.closest(".token");
      if (token) choose({ row: Number(token.dataset.row) }, true);
    });
    shown.addEventListener("keydown", (event) => move(event, tokens));
    shownPassage.replaceChildren(shown, details(passage));
    if (focus && chosen.row !== null) tokens[chosen.row].focus({ preventScroll: true });
  }

  function move(event, tokens) {
    const row = Number(event.target.dataset.row);
    const next = { ArrowRight: row + 1, ArrowLeft: row - 1, Home: 0, End: tokens.length - 1, Enter: row, " ": row }[event.key];
    if (next === undefined || next < 0 || next >= tokens.length) return;
    event.preventDefault();
    choose({ row: next }, true);
  }

  function choose(change, focus = false) {
    Object.assign(chosen, change);
    memory.write({ tokens: chosen });
    draw(focus);
  }

  draw();
})();
