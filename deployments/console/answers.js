// An answer as elements, chosen by its shape: spans of the text, labels with scores, texts, or plain JSON.

/** An element with properties and children; texts are always text. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Put other children in place of those there; where a control of them has the focus, the one at its place gets it. */
export function refill(place, ...children) {
  const controls = () => [...place.querySelectorAll("a, button, summary, [tabindex]")];
  const focused = controls().indexOf(document.activeElement);
  place.replaceChildren(...children);
  if (focused >= 0) controls()[focused]?.focus({ preventScroll: true });
}

/** The elements of `answer`; spans count characters of `text`, and `word` gives the page's words. */
export function shown(answer, text, word) {
  const items = [answer].flat(Infinity);
  const has = (...names) => items.every((one) => one !== null && typeof one === "object" && names.every((name) => name in one));
  if (!items.length) return [note(word("nothing"))];
  if (has("start", "end")) return spans(items.filter((one) => one.end > one.start), text, word);
  if (has("score")) return items.map((one) => bar(texts(one).join(" · ") || word("score"), one.score));
  if (has() && items.every((one) => texts(one).length === 1)) return items.map((one) => make("p", { className: "prose large", textContent: texts(one)[0] || word("empty") }));
  return [make("pre", { textContent: JSON.stringify(answer, null, 2) })];
}

const texts = (one) => Object.values(one).filter((value) => typeof value === "string");
const note = (text) => make("p", { className: "note", textContent: text });
const percent = (score) => `${(100 * score).toFixed(score > 0.9995 || score < 0.001 ? 2 : 1)}%`;

function bar(label, score, tone) {
  const fill = make("div", { className: "fill" });
  fill.style.setProperty("--share", Math.max(0, Math.min(1, score)));
  const name = make("span", {}, label, tone === undefined ? null : make("small", { textContent: tone }));
  return make("div", { className: "bar" }, name, make("div", { className: "track" }, fill), make("b", { textContent: score >= 0 && score <= 1 ? percent(score) : score.toFixed(3) }));
}

/** Labelled spans are all marked, in a colour for each label; of others, which may overlap, the best. */
function spans(items, text, word) {
  if (!items.length) return [note(word("nothing"))];
  const labelOf = (one) => one.entity_group ?? one.entity ?? one.label;
  const kindOf = (one) => labelOf(one)?.replace(/^[BI]-/, "");
  const kinds = [...new Set(items.map(kindOf))];
  const marks = kinds[0] === undefined ? items.slice(0, 1) : items;
  const scored = items.filter((one) => typeof one.score === "number");
  return [
    marked(text, marks.map((one) => ({ ...one, label: labelOf(one), tone: kinds.indexOf(kindOf(one)) % 5 }))),
    ...scored.map((one) => bar(Array.from(text).slice(one.start, one.end).join(""), one.score, labelOf(one))),
  ];
}

/** A text with some of its spans marked; offsets count characters as Unicode does. */
function marked(text, spans) {
  const characters = Array.from(text);
  const parts = [];
  let position = 0;
  for (const { start, end, label, tone } of spans) {
    if (start < position) continue;
    parts.push(characters.slice(position, start).join(""), make("mark", { className: `tone-${tone}` }, characters.slice(start, end).join(""), label ? make("small", { textContent: label }) : null));
    position = end;
  }
  return make("p", { className: "prose" }, ...parts, characters.slice(position).join(""));
}
