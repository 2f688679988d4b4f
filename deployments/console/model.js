// The page of one model: its facts, what it does now, parity, labels, what was measured, and its card.
// From /catalog/TASK[/NAME]; the numbers from the events of /live.
import { make, refill } from "./answers.js";
import { reason } from "./client.js";
import { numbersOf } from "./live.js";

const ROUTE = /^(\/[a-z0-9-]+){1,3}$/;
const SHOWN = 100; // labels, answers that differ and measurements: further ones are counted
const LIVE = ["perSecond", "p50", "p99", "waiting", "failed", "slots"];
const MIB = 2 ** 20;
const AGAIN_MS = 10_000; // another version may have taken over

/** The page in `root`. `base` is where the server is, `ask` asks it, `watch` is of `liveModels`, `changed` is called with
 * each page that has come, null where none is shown. */
export function modelView(root, { base, ask, watch, number, word, changed }) {
  let route = null, page = null, fault = null, numbers = null, known = "", drawn = "", stop = null, timer = null;

  /** Show the model at a route, /TASK or /TASK/NAME. */
  function open(wanted) {
    close();
    route = wanted;
    root.hidden = false;
    if (!ROUTE.test(route)) return failed(word("noModel"));
    draw();
    stop = watch(update);
    timer = setInterval(load, AGAIN_MS);
    load();
  }

  function close() {
    stop?.();
    clearInterval(timer);
    route = page = fault = numbers = stop = timer = null;
    known = drawn = "";
    root.hidden = true;
    root.replaceChildren();
    changed(null);
  }

  async function load() {
    const wanted = route;
    let found = null, why = word("unreachable");
    try {
      const response = await ask(`${base}/catalog${wanted}`);
      if (response.ok) found = await response.json();
      else why = await reason(response);
    } catch {} // the server does not answer
    if (route !== wanted) return;
    if (found) arrived(found);
    else failed(why);
  }

  /** It is drawn where more than its memory has changed: whoever reads it keeps the place. */
  function arrived(found) {
    const { memory_bytes: _memory, ...model } = found.model ?? {};
    const before = drawn;
    drawn = JSON.stringify({ ...found, model });
    page = found;
    if (drawn === before && fault === null) return drawNumbers();
    fault = null;
    changed(page);
    draw();
  }

  /** What was there stays below the reason. */
  function failed(why) {
    if (fault === why) return;
    fault = why;
    numbers = null;
    draw();
  }

  function update(models) {
    const mine = models.find((one) => one.route === route);
    const was = known;
    known = mine ? `${mine.replicas}` : "gone";
    numbers = mine ? numbersOf(mine, number) : null;
    drawNumbers();
    if (was ? known !== was : !mine && page) load(); // it came, went, or has other replicas
  }

  function draw() {
    const isOpen = root.querySelector("details")?.open;
    const model = page?.model;
    refill(
      root,
      ...(fault ? [make("p", { className: "error", role: "alert", textContent: fault })] : []),
      ...(page ? [panel("facts", facts()), panel("now", make("dl", { className: "tiles" }))] : []),
      ...(page && !model ? [make("p", { className: "note", textContent: word(page.asleep ? "asleepModel" : "silentModel") })] : []),
      ...(model ? [panel("parity", ...parity(model.parity))] : []),
      ...(model?.labels.length ? [panel("labels", chips(model.labels))] : []),
      ...(model && Object.keys(model.metrics).length ? [panel("measured", ...measured(model.metrics))] : []),
      ...(model ? [panel("card", ...card(model))] : []),
    );
    root.setAttribute("aria-busy", String(!page && !fault));
    drawNumbers();
    if (isOpen) root.querySelector("details")?.setAttribute("open", "");
  }

  function drawNumbers() {
    const place = root.querySelector(".tiles");
    const memory = page?.model ? `${number(page.model.memory_bytes / MIB, 0)} MiB` : null;
    const values = { replicas: page && number(page.replicas, 0), ...numbers, memory };
    place?.replaceChildren(...["replicas", ...LIVE, "memory"].map((name) => fact(word(name), values[name] ?? "–")));
  }

  /** JSON has no number where a comparison gave none. */
  const figure = (value, digits) => (typeof value === "number" ? number(value, digits) : "–");

  function panel(name, ...children) {
    return make("section", { className: "panel", id: `model-${name}` }, make("h2", { textContent: word(name) }), ...children);
  }

  function facts() {
    const { model } = page;
    const share = page.share === null ? "?" : `${number(page.share, page.share % 1 ? 2 : 0)} %${page.sticky ? ` (${word("sticky")})` : ""}`;
    const known = model && [
      ["name", model.id], ["checkpoint", model.checkpoint], ["revision", code(model.revision)], ["base", model.adapter_of ?? model.base], ["digest", code(model.digest)], ["licence", model.licence],
      ["architecture", model.architecture], ["precision", model.precision], ["device", model.device], ["longestInput", word("longest").replace("{n}", number(model.max_length, 0))],
    ];
    const rows = [["path", code(page.route)], ["share", share], ...(known || [])].filter(([, value]) => value);
    return make("dl", { className: "facts" }, ...rows.map(([name, value]) => fact(word(name), value)));
  }

  function parity(found) {
    const [before, after] = found.perplexities ?? [];
    const rows = [
      ["verdict", make("b", { className: found.passed ? "good" : "bad", textContent: word(found.passed ? "passed" : "didNotPass") })],
      ["agreement", `${number(100 * found.agreement, 2)} %`], ["required", found.threshold], ["compared", number(found.inputs, 0)], ["comparedOn", found.compared_on],
      ["largest", figure(found.largest_difference, 4)], ["perplexity", found.perplexities && `${figure(after, 2)} (PyTorch ${figure(before, 2)})`],
    ].filter(([, value]) => value);
    const differing = found.disagreements.slice(0, SHOWN).map((line) => make("li", { textContent: line }));
    const list = make("details", {}, make("summary", { textContent: `${word("differing")} (${number(found.disagreements.length, 0)})` }), make("ul", {}, ...differing), ...more(found.disagreements));
    return [make("dl", { className: "facts" }, ...rows.map(([name, value]) => fact(word(name), value))), ...(differing.length ? [list] : [])];
  }

  function chips(labels) {
    return make("ul", { className: "labels" }, ...labels.slice(0, SHOWN).map((label) => make("li", { textContent: label })), ...more(labels, "li"));
  }

  const more = (items, tag = "p") => (items.length > SHOWN ? [make(tag, { className: "note", textContent: word("more").replace("{n}", number(items.length - SHOWN, 0)) })] : []);

  /** A table for each data file: scores by system, with the ends of their intervals. */
  function measured(metrics) {
    const files = Object.entries(metrics);
    return [...files.slice(0, SHOWN).map(([name, found]) => (found?.scores ? scores(name, found) : make("pre", { textContent: JSON.stringify({ [name]: found }, null, 2) }))), ...more(files)];
  }

  function scores(name, { rows, scores: bySystem }) {
    const systems = Object.keys(bySystem);
    const names = [...new Set(systems.flatMap((system) => Object.keys(bySystem[system])))];
    const cell = (value) => (Array.isArray(value) ? `${figure(value[0], 3)} [${figure(value[1], 3)}, ${figure(value[2], 3)}]` : "–");
    const head = make("tr", {}, make("th", { scope: "col", textContent: word("score") }), ...systems.map((system) => make("th", { scope: "col", textContent: system })));
    const body = names.map((score) => make("tr", {}, make("th", { scope: "row", textContent: score }), ...systems.map((system) => make("td", { textContent: cell(bySystem[system][score]) }))));
    const table = make("table", {}, make("caption", { textContent: `${name} · ${word("rows").replace("{n}", figure(rows, 0))}` }), make("thead", {}, head), make("tbody", {}, ...body));
    return scrolled(table, name);
  }

  /** The card's HTML is the gateway's, which lets no markup of its author through (models.py). */
  function card(model) {
    if (!model.card_html) return [make("p", { className: "note", textContent: word("noCard") })];
    const written = make("div", { className: "card", innerHTML: model.card_html });
    for (const [index, table] of [...written.querySelectorAll("table")].entries()) {
      const place = document.createComment("");
      table.replaceWith(place);
      place.replaceWith(scrolled(table, `${word("card")}: ${word("table")} ${index + 1}`));
    }
    const length = new TextEncoder().encode(model.card).length;
    const cut = word("cut").replace("{n}", number(length, 0)).replace("{all}", number(model.card_bytes, 0));
    return [written, ...(length < model.card_bytes ? [make("p", { className: "note", textContent: cut })] : [])];
  }

  return { open, close, draw };
}

const code = (text) => text && make("code", { textContent: text });
const fact = (name, value) => make("div", {}, make("dt", { textContent: name }), make("dd", {}, value));
const scrolled = (table, name) => make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: name }, table);
