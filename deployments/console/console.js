// The page itself: it builds a task's form from tasks.json, sends what was written there to the public API, and shows the answer.
import { make, refill, shown } from "./answers.js";
import { addCalls, areComplete, resultFields, shownCalls } from "./calls.js";
import { client, events, reason } from "./client.js";
import { liveModels, showLive } from "./live.js";
import { modelView } from "./model.js";
import { requestOf, snippets } from "./requests.js";
import { WORDS } from "./words.js";

const $ = (id) => document.getElementById(id);
const origin = new URL(".", location.href).href.replace(/\/$/, "");
const TIMINGS = ["queue", "tokenization", "inference", "total"];
const state = { language: chosenLanguage(), tasks: [], task: null, form: null, catalog: [], written: {}, dialect: "curl", history: [], results: {}, running: null, route: null, page: null };

function chosenLanguage() {
  try {
    return localStorage.getItem("language") ?? (navigator.language.startsWith("ko") ? "ko" : "en");
  } catch {
    return "en";
  }
}

const word = (name) => WORDS[state.language][name] ?? name;
const inLanguage = (texts) => texts[state.language] ?? Object.values(texts)[0];
const number = (value, digits) => value.toLocaleString(state.language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
const { send, ask } = client(word);
const watch = liveModels((signal) => ask(`${origin}/live`, { signal }));
const changed = (page) => ((state.page = page), showHeading());
const view = modelView($("page"), { base: origin, ask, watch, number, word, changed });
const isChat = () => state.form.kind === "chat";

/** What stands in the form: texts by field, and parameters; at first those of its first example. */
function written() {
  const form = state.form;
  return (state.written[form.path] ??= copyOf(form.examples[0] ?? { texts: {}, parameters: {} }));
}

const copyOf = (example) => structuredClone({ texts: example.texts, parameters: example.parameters });

// ------------------------------------------------------------------------------------------------ the catalog

async function loadCatalog() {
  try {
    const response = await ask(`${origin}/`, { headers: { accept: "application/json" } });
    if (!response.ok) throw new Error(response.statusText);
    const catalog = await response.json();
    state.catalog = catalog.tasks;
    $("version").textContent = catalog.version;
  } catch {
    state.catalog = [];
  }
  showState();
  showTasks();
  showModel();
  const waits = !state.catalog.length || state.catalog.some((one) => !one.ready || (!one.model && !one.asleep));
  setTimeout(loadCatalog, waits ? 3000 : 30000);
}

function showState() {
  const ready = state.catalog.filter((one) => one.ready).length;
  const all = ready > 0 && ready === state.catalog.length;
  $("state").className = all ? "good" : "waiting";
  $("state").textContent = all ? word("allReady") : state.catalog.length ? `${ready} ${word("someReady")} ${state.catalog.length} ${word("tasksReady")}` : word("unreachable");
}

function showTasks() {
  refill(
    $("tasks"),
    ...state.tasks.map((task) => {
      const entry = state.catalog.find((one) => one.task === task.name);
      const status = !entry ? "missing" : entry.asleep ? "asleep" : entry.ready ? "ready" : "starting";
      const button = make("button", { type: "button" }, make("i", { className: status, title: word(status) }), make("b", { textContent: inLanguage(task.title) }), make("code", { textContent: `/${task.name}` }));
      if (task === state.task) button.setAttribute("aria-current", state.route ? "true" : "page");
      button.onclick = () => go(task.name);
      return button;
    }),
  );
}

function showModel() {
  const entry = state.catalog.find((one) => one.task === state.task.name);
  const model = state.route ? null : entry?.model;
  $("model").hidden = Boolean(state.route);
  $("model").replaceChildren(
    ...(model ? [model.id, model.architecture, model.precision, model.device, word("longest").replace("{n}", number(model.max_length, 0))] : []).map((text) => make("span", { textContent: text })),
  );
  const links = [entry, ...(entry?.others ?? [])].filter(Boolean).map((one) => {
    const link = make("a", { href: `#${one.route}`, textContent: one.route });
    if (one.route === state.route) link.setAttribute("aria-current", "page");
    return link;
  });
  refill($("models"), ...(links.length ? [make("small", { textContent: word("pages") })] : []), ...links);
}

// ------------------------------------------------------------------------------------------------ what is shown

/** The hash is a task's name, or the route of a model, /TASK or /TASK/NAME. */
function follow() {
  const place = location.hash.slice(1);
  const task = state.tasks.find((one) => one.name === place.split("/")[place.startsWith("/") ? 1 : 0]) ?? state.task ?? state.tasks[0];
  if (place.startsWith("/")) openModel(place, task);
  else openTask(task);
}

function go(place) {
  history.pushState(null, "", `#${place}`);
  follow();
}

function openModel(route, task) {
  state.running?.abort();
  Object.assign(state, { route, task, form: task.forms[0], history: [] });
  view.open(route);
  showAll();
  $("title").focus();
}

function showHeading() {
  const title = inLanguage(state.task.title);
  $("title").textContent = state.route ? (state.page?.model?.id ?? state.route) : title;
  $("about").textContent = state.route ? title : inLanguage(state.task.summary);
  document.title = `${$("title").textContent} · Sextet`;
}

// --------------------------------------------------------------------------------------------------- the form

function openTask(task) {
  state.running?.abort();
  Object.assign(state, { route: null, task, form: task.forms[0], history: [] });
  view.close();
  showAll();
}

function showAll() {
  document.documentElement.lang = state.language;
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
  for (const element of document.querySelectorAll("[data-label]")) element.ariaLabel = word(element.dataset.label);
  for (const button of document.querySelectorAll("[data-language]")) button.setAttribute("aria-pressed", button.dataset.language === state.language);
  showHeading();
  for (const element of document.querySelectorAll("#form, .code")) element.hidden = Boolean(state.route);
  $("run").textContent = word("run");
  $("answer").hidden = true;
  $("result").replaceChildren();
  showState();
  showTasks();
  showModel();
  showModes();
  showFields();
  showParameters();
  showSnippet();
}

function showModes() {
  $("modes").hidden = state.task.forms.length < 2;
  $("modes").replaceChildren(
    ...state.task.forms.map((form) => {
      const button = make("button", { type: "button", textContent: word(form.kind), onclick: () => ((state.form = form), (state.history = []), showAll()) });
      button.setAttribute("aria-pressed", form === state.form);
      return button;
    }),
  );
}

function showFields() {
  const { texts } = written();
  const calls = isChat() ? state.history.at(-1)?.tool_calls : null;
  if (calls) return $("fields").replaceChildren(...resultFields(calls, state.results, word, showSnippet));
  $("fields").replaceChildren(
    ...state.form.fields.map((name) => {
      const longest = Math.max(...state.form.examples.map((example) => example.texts[name]?.length ?? 0));
      const rows = state.form.fields.length > 1 && longest < 60 ? 1 : Math.min(6, 2 + Math.floor(longest / 90));
      const area = make("textarea", { id: `field-${name}`, rows, value: texts[name] ?? "", spellcheck: false, required: true });
      area.oninput = () => ((texts[name] = area.value), showSnippet());
      area.onkeydown = (event) => {
        // It returns nothing: a handler that returns false swallows the key.
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
      };
      return make("label", {}, make("span", { textContent: word(name) }), area);
    }),
  );
  $("examples").replaceChildren(
    ...state.form.examples.map((example) => {
      const text = Object.values(example.texts)[0];
      const choose = () => ((state.written[state.form.path] = copyOf(example)), showFields(), showParameters(), showSnippet());
      return make("button", { type: "button", className: "quiet", lang: example.language, textContent: text.length > 34 ? `${text.slice(0, 32)}…` : text, title: text, onclick: choose });
    }),
  );
}

function showParameters() {
  const { parameters } = written();
  $("more").hidden = !state.form.parameters.length;
  $("parameters").replaceChildren(
    ...state.form.parameters.map((one) => {
      const path = one.name.split(".");
      const value = path.reduce((object, key) => object?.[key], parameters);
      const input = one.kind === "choice" ? choiceOf(one, value) : one.kind === "json" ? documentOf(value) : inputOf(one, value);
      input.oninput = () => {
        setAt(parameters, path, read(one, input));
        showSnippet();
      };
      const label = make("label", {}, make("code", { textContent: path.at(-1) }), input);
      return one.kind === "json" ? make("div", { className: "document" }, label, exampleFor(one, input)) : label;
    }),
  );
}

const defaultOf = (one) => (one.default === null ? word("default") : `${word("default")}: ${one.default}`);

function choiceOf(one, value) {
  const options = one.choices.map((choice) => make("option", { value: String(choice), textContent: String(choice) }));
  const select = make("select", {}, make("option", { value: "", textContent: defaultOf(one) }), ...options);
  return Object.assign(select, { value: value === undefined ? "" : String(value) });
}

function inputOf(one, value) {
  const input = make("input", { type: one.kind === "text" ? "text" : "number", placeholder: defaultOf(one), value: value ?? "" });
  return Object.assign(input, one.kind === "text" ? {} : { min: one.minimum ?? "", max: one.maximum ?? "", step: one.kind === "integer" ? 1 : "any" });
}

const documentOf = (value) => make("textarea", { rows: 3, spellcheck: false, oninvalid: () => ($("more").open = true), value: value === undefined ? "" : JSON.stringify(value, null, 2) });

function exampleFor(one, area) {
  const fill = () => {
    area.value = JSON.stringify(one.example, null, 2);
    area.oninput();
    area.focus();
  };
  const button = make("button", { type: "button", className: "quiet", textContent: word("example"), onclick: fill });
  button.setAttribute("aria-label", `${word("example")}: ${one.name}`);
  return button;
}

/** The value of a control; undefined: the default. */
function read(one, input) {
  if (one.kind === "json") return readDocument(input);
  if (input.value === "") return undefined;
  if (one.kind === "choice") return one.choices.find((choice) => String(choice) === input.value);
  return one.kind === "text" ? input.value : Number(input.value);
}

/** The JSON in a control; what is none keeps the form from being sent, and says so. */
function readDocument(area) {
  area.setCustomValidity("");
  area.removeAttribute("aria-invalid");
  if (!area.value.trim()) return undefined;
  try {
    return JSON.parse(area.value);
  } catch {
    area.setCustomValidity(word("notJson"));
    area.setAttribute("aria-invalid", "true");
  }
}

/** Set what stands at a path of keys, or remove it; an object that becomes empty goes too. */
function setAt(object, [key, ...rest], value) {
  if (rest.length) setAt((object[key] ??= {}), rest, value);
  else object[key] = value;
  if (object[key] === undefined || (rest.length && !Object.keys(object[key]).length)) delete object[key];
}

function given() {
  const { texts, parameters } = written();
  return requestOf(state.form, texts, parameters, state.history, state.results);
}

function showSnippet() {
  const made = snippets(origin, state.task, state.form, given());
  if (!made[state.dialect]) state.dialect = "curl";
  $("dialects").replaceChildren(
    ...Object.keys(made).map((name) => {
      const button = make("button", { type: "button", textContent: name, onclick: () => ((state.dialect = name), showSnippet()) });
      button.setAttribute("aria-pressed", name === state.dialect);
      return button;
    }),
  );
  $("snippet").textContent = made[state.dialect];
}

// ------------------------------------------------------------------------------------------------ the request

$("form").onsubmit = async (event) => {
  event.preventDefault();
  if (state.running) return;
  const running = (state.running = new AbortController());
  $("run").textContent = word("running");
  $("form").classList.add("busy");
  $("stop").hidden = false;
  $("answer").hidden = false;
  $("timings").replaceChildren();
  const request = given();
  const startedAt = performance.now();
  try {
    const response = await send(`${origin}/${request.path}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(request.body), signal: running.signal });
    if (!response.ok) throw new Error(await reason(response));
    if (request.body.stream) await showStream(response, request, startedAt);
    else {
      const answer = await response.json();
      const { inputs } = request.body;
      const text = typeof inputs === "string" ? inputs : Object.values(inputs).at(-1);
      $("result").replaceChildren(...shown(answer, text, word));
      showTimings(TIMINGS.map((name) => [name, `${Number(response.headers.get(`x-${name}-time`)).toFixed(1)} ms`]), response.headers.get("x-compute-tokens"));
    }
  } catch (error) {
    if (error.name === "AbortError") $("result").append(make("p", { className: "note", textContent: word("stopped") }));
    else $("result").replaceChildren(make("p", { className: "error", role: "alert", textContent: error.message }));
  } finally {
    state.running = null;
    $("run").textContent = word("run");
    $("form").classList.remove("busy");
    $("stop").hidden = true;
  }
};
$("stop").onclick = () => state.running?.abort();

function showTimings(pairs, tokens) {
  $("timings").replaceChildren(...pairs.map(([name, value]) => make("span", {}, make("em", { textContent: word(name) }), value)), ...(tokens ? [make("span", {}, make("em", { textContent: word("tokens") }), tokens)] : []));
}

async function showStream(response, request, startedAt) {
  const grown = make("span", { className: "grown" });
  const cursor = make("span", { className: "cursor" });
  let text = "", firstAt = null, tokens = null;
  const calls = [];
  const called = make("div");
  if (isChat()) {
    const turns = [...request.body.messages].map((one) => bubble(one.role, one.content, one.tool_calls));
    const answer = bubble("assistant", "");
    answer.lastChild.append(grown, cursor);
    answer.append(called);
    $("result").replaceChildren(make("div", { className: "chat" }, ...turns, answer));
  } else $("result").replaceChildren(make("p", { className: "prose" }, make("span", { className: "given", textContent: request.body.inputs }), grown, cursor));
  try {
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message ?? event.error);
      tokens = event.usage?.completion_tokens ?? event.details?.generated_tokens ?? tokens;
      const piece = event.choices?.[0]?.delta?.content ?? event.token?.text ?? "";
      if (piece) {
        firstAt ??= performance.now();
        grown.textContent = text += piece;
      }
      const deltas = event.choices?.[0]?.delta?.tool_calls;
      if (deltas) {
        firstAt ??= performance.now();
        addCalls(calls, deltas);
        called.replaceChildren(shownCalls(calls, word));
      }
    }
  } finally {
    cursor.remove();
  }
  if (!text && !calls.length) grown.append(make("em", { textContent: word("empty") }));
  const seconds = (performance.now() - startedAt) / 1000;
  const times = [["first", `${((firstAt ?? performance.now()) - startedAt).toFixed(0)} ms`], ["total", `${seconds.toFixed(1)} s`]];
  if (tokens) times.push(["rate", (tokens / seconds).toFixed(1)]);
  showTimings(times, tokens);
  if (isChat() && (text || calls.length) && areComplete(calls)) {
    state.history = [...request.body.messages, { role: "assistant", content: text || null, ...(calls.length ? { tool_calls: calls } : {}) }];
    state.results = {};
    written().texts.message = "";
    showFields();
    $("fields").querySelector("textarea").focus();
    showSnippet();
    $("result").append(make("button", { type: "button", className: "quiet", textContent: word("clear"), onclick: () => ((state.history = []), showAll()) }));
  }
}

const speaker = (role) => word({ user: "you", tool: "tool" }[role] ?? "model");
const bubble = (role, content, calls) => make("div", { className: `bubble ${role}` }, make("small", { textContent: speaker(role) }), content === null ? null : make("p", { textContent: content }), calls ? shownCalls(calls, word) : null);

// -------------------------------------------------------------------------------------------------- the start

for (const button of document.querySelectorAll("[data-language]")) {
  button.onclick = () => {
    state.language = button.dataset.language;
    try {
      localStorage.setItem("language", state.language);
    } catch {} // private windows may forbid it; the choice then lasts as long as the page
    if (!state.task) return; // the tasks have not come yet
    showAll();
    if (state.route) view.draw();
  };
}
$("copy").onclick = async () => {
  await navigator.clipboard?.writeText($("snippet").textContent);
  $("copy").textContent = word("copied");
  setTimeout(() => ($("copy").textContent = word("copy")), 1500);
};
showLive($("live"), $("live-table"), { watch, number, word });
if (location.hash === "#live") $("live").open = true;
const loaded = await fetch(`${origin}/console/tasks.json`);
state.tasks = await loaded.json();
addEventListener("hashchange", follow);
follow();
loadCatalog();
