// The page itself: it builds a task's form, sends what was written there to the public API, and shows the answer.
import { TASKS, requestOf, snippets } from "./tasks.js";
import { WORDS } from "./words.js";

const $ = (id) => document.getElementById(id);
const origin = new URL(".", location.href).href.replace(/\/$/, "");
const TIMINGS = ["queue", "tokenization", "inference", "total"];
const state = { language: chosenLanguage(), task: "text-classification", mode: "chat", catalog: [], values: {}, dialect: "curl", history: [], running: null };

/** An element with properties and children; texts are always text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function chosenLanguage() {
  try {
    return localStorage.getItem("language") ?? (navigator.language.startsWith("ko") ? "ko" : "en");
  } catch {
    return "en";
  }
}

const word = (name) => WORDS[state.language][name] ?? name;
const definition = () => TASKS[state.task];
const fields = () => (definition().modes ? definition().fields[state.mode] : definition().fields);
const examples = () => (definition().modes ? definition().examples[state.mode] : definition().examples);
const isChat = () => state.task === "text-generation" && state.mode === "chat";

// ------------------------------------------------------------------------------------------------ the catalog

async function loadCatalog() {
  try {
    const response = await fetch(`${origin}/`, { headers: { accept: "application/json" } });
    const catalog = await response.json();
    state.catalog = catalog.tasks;
    $("version").textContent = catalog.version;
  } catch {
    state.catalog = [];
  }
  showState();
  showTasks();
  showModel();
  const waits = !state.catalog.length || state.catalog.some((one) => !one.ready || !one.model);
  setTimeout(loadCatalog, waits ? 3000 : 30000);
}

function showState() {
  const ready = state.catalog.filter((one) => one.ready).length;
  const all = ready > 0 && ready === state.catalog.length;
  $("state").className = all ? "good" : "waiting";
  $("state").textContent = all ? word("allReady") : state.catalog.length ? `${ready} ${word("someReady")} ${state.catalog.length} ${word("tasksReady")}` : word("unreachable");
}

function showTasks() {
  $("tasks").replaceChildren(
    ...Object.keys(TASKS).map((task) => {
      const entry = state.catalog.find((one) => one.task === task);
      const status = entry ? (entry.ready ? "ready" : "starting") : "missing";
      const button = make("button", { type: "button" }, make("i", { className: status, title: word(status) }), make("b", { textContent: word(task)[0] }), make("code", { textContent: `/${task}` }));
      if (task === state.task) button.setAttribute("aria-current", "page");
      button.onclick = () => openTask(task);
      return button;
    }),
  );
}

function showModel() {
  const model = state.catalog.find((one) => one.task === state.task)?.model;
  $("model").replaceChildren(
    ...(model ? [model.id, model.architecture, model.precision, model.device, word("longest").replace("{n}", model.max_length.toLocaleString(state.language))] : []).map((text) => make("span", { textContent: text })),
  );
}

// --------------------------------------------------------------------------------------------------- the form

function openTask(task) {
  state.running?.abort();
  state.task = TASKS[task] ? task : "text-classification";
  state.history = [];
  history.replaceState(null, "", `#${state.task}`);
  showAll();
}

function showAll() {
  document.documentElement.lang = state.language;
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
  for (const button of document.querySelectorAll("[data-language]")) button.setAttribute("aria-pressed", button.dataset.language === state.language);
  const [title, about] = word(state.task);
  $("title").textContent = title;
  $("about").textContent = about;
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
  const modes = definition().modes ?? [];
  $("modes").hidden = !modes.length;
  $("modes").replaceChildren(
    ...modes.map((mode) => {
      const button = make("button", { type: "button", textContent: word(mode), onclick: () => ((state.mode = mode), (state.history = []), showAll()) });
      button.setAttribute("aria-pressed", mode === state.mode);
      return button;
    }),
  );
}

function showFields() {
  const kept = (state.values[`${state.task}/${state.mode}`] ??= { ...examples()[0] });
  $("fields").replaceChildren(
    ...fields().map((name) => {
      const rows = name === "question" ? 1 : name === "context" || state.task === "summarization" ? 5 : 2;
      const area = make("textarea", { id: `field-${name}`, rows, value: kept[name] ?? "", spellcheck: false, required: true });
      area.oninput = () => ((kept[name] = area.value), showSnippet());
      area.onkeydown = (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && $("form").requestSubmit();
      return make("label", {}, make("span", { textContent: word(name) }), area);
    }),
  );
  $("examples").replaceChildren(
    ...examples().map((example) => {
      const text = Object.values(example)[0];
      return make("button", { type: "button", className: "quiet", textContent: text.length > 34 ? `${text.slice(0, 32)}…` : text, title: text, onclick: () => (Object.assign(kept, example), showFields(), showSnippet()) });
    }),
  );
}

function showParameters() {
  const offered = definition().parameters;
  $("more").hidden = !offered.length;
  $("parameters").replaceChildren(
    ...offered.map((one) => {
      const preset = definition().preset?.[one.name] ?? one.initial ?? "";
      const input =
        one.kind === "choice"
          ? make("select", {}, make("option", { value: "", textContent: word("default") }), ...one.options.map((option) => make("option", { value: option, textContent: option })))
          : make("input", { type: "number", min: one.min, max: one.max, step: one.step, placeholder: word("default") });
      Object.assign(input, { name: one.name, value: preset, oninput: showSnippet });
      return make("label", {}, make("code", { textContent: one.name }), input);
    }),
  );
}

function given() {
  const parameters = {};
  for (const input of $("parameters").querySelectorAll("input, select")) {
    if (input.value === "") continue;
    parameters[input.name] = input.type === "number" ? Number(input.value) : ["true", "false"].includes(input.value) ? input.value === "true" : input.value;
  }
  return requestOf(state.task, state.mode, state.values[`${state.task}/${state.mode}`], parameters, state.history);
}

function showSnippet() {
  const made = snippets(origin, state.task, state.mode, given());
  if (!made[state.dialect]) state.dialect = "curl";
  $("dialects").replaceChildren(
    ...Object.keys(made).map((name) => {
      const button = make("button", { type: "button", textContent: { curl: "curl", python: "huggingface_hub", openai: "openai" }[name], onclick: () => ((state.dialect = name), showSnippet()) });
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
    const response = await fetch(`${origin}/${request.path}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(request.body), signal: running.signal });
    if (!response.ok) throw new Error(await reason(response));
    if (request.body.stream) await showStream(response, request, startedAt);
    else {
      const answer = await response.json();
      $("result").replaceChildren(...SHOWN[state.task](answer, request.body));
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

async function reason(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return `${response.status} · ${error.message ?? error}`;
  } catch {
    return `${response.status} · ${text.slice(0, 300)}`;
  }
}

function showTimings(pairs, tokens) {
  $("timings").replaceChildren(...pairs.map(([name, value]) => make("span", {}, make("em", { textContent: word(name) }), value)), ...(tokens ? [make("span", {}, make("em", { textContent: word("tokens") }), tokens)] : []));
}

/** The server-sent events of a response, one decoded payload after the other. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) if (block.startsWith("data: ") && block !== "data: [DONE]") yield JSON.parse(block.slice(6));
  }
}

async function showStream(response, request, startedAt) {
  const grown = make("span", { className: "grown" });
  const cursor = make("span", { className: "cursor" });
  let text = "", firstAt = null, usage = null;
  if (isChat()) {
    const turns = [...request.body.messages].map((one) => bubble(one.role, one.content));
    const answer = bubble("assistant", "");
    answer.lastChild.append(grown, cursor);
    $("result").replaceChildren(make("div", { className: "chat" }, ...turns, answer));
  } else $("result").replaceChildren(make("p", { className: "prose" }, make("span", { className: "given", textContent: request.body.prompt }), grown, cursor));
  try {
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message ?? event.error);
      usage = event.usage ?? usage;
      const piece = event.choices[0]?.delta?.content ?? event.choices[0]?.text ?? "";
      if (piece) {
        firstAt ??= performance.now();
        grown.textContent = text += piece;
      }
    }
  } finally {
    cursor.remove();
  }
  if (!text) grown.append(make("em", { textContent: word("empty") }));
  const seconds = (performance.now() - startedAt) / 1000;
  const shown = [["first", `${((firstAt ?? performance.now()) - startedAt).toFixed(0)} ms`], ["total", `${seconds.toFixed(1)} s`]];
  if (usage) shown.push(["rate", (usage.completion_tokens / seconds).toFixed(1)]);
  showTimings(shown, usage?.completion_tokens);
  if (isChat() && text) {
    state.history = [...request.body.messages, { role: "assistant", content: text }];
    state.values["text-generation/chat"].message = "";
    $("field-message").value = "";
    showSnippet();
    $("result").append(make("button", { type: "button", className: "quiet", textContent: word("clear"), onclick: () => ((state.history = []), showAll()) }));
  }
}

const bubble = (role, content) => make("div", { className: `bubble ${role}` }, make("small", { textContent: word(role === "user" ? "you" : "model") }), make("p", { textContent: content }));

// ------------------------------------------------------------------------------------------------ the answers

const percent = (score) => `${(100 * score).toFixed(score > 0.9995 || score < 0.001 ? 2 : 1)}%`;

function bar(label, score) {
  const fill = make("div", { className: "fill" });
  fill.style.setProperty("--share", Math.max(0, Math.min(1, score)));
  return make("div", { className: "bar" }, make("span", { textContent: label }), make("div", { className: "track" }, fill), make("b", { textContent: score >= 0 && score <= 1 ? percent(score) : score.toFixed(3) }));
}

/** A text with some of its stretches marked; offsets count characters as Unicode does. */
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

const prose = (text) => [make("p", { className: "prose large", textContent: text || word("empty") })];

const SHOWN = {
  "text-classification": ([labels]) => labels.map((one) => bar(one.label, one.score)),
  "question-answering": (answer, body) => {
    const answers = [answer].flat().filter((one) => one.answer);
    if (!answers.length) return [make("p", { className: "note", textContent: word("noAnswer") })];
    return [marked(body.inputs.context, [{ ...answers[0], tone: 0 }]), ...answers.map((one) => bar(one.answer, one.score))];
  },
  "token-classification": (entities, body) => {
    if (!entities.length) return [make("p", { className: "note", textContent: word("noEntities") })];
    const kind = (one) => one.entity_group ?? one.entity;
    const kinds = [...new Set(entities.map((one) => kind(one).replace(/^[BI]-/, "")))];
    return [
      marked(body.inputs, entities.map((one) => ({ ...one, label: kind(one), tone: kinds.indexOf(kind(one).replace(/^[BI]-/, "")) % 5 }))),
      ...entities.map((one) => bar(`${one.word}`, one.score)),
    ];
  },
  translation: ([answer]) => prose(answer.translation_text),
  summarization: ([answer]) => prose(answer.summary_text),
};

// -------------------------------------------------------------------------------------------------- the start

for (const button of document.querySelectorAll("[data-language]")) {
  button.onclick = () => {
    state.language = button.dataset.language;
    try {
      localStorage.setItem("language", state.language);
    } catch {} // private windows may forbid it; the choice then lasts as long as the page
    showAll();
  };
}
$("copy").onclick = async () => {
  await navigator.clipboard?.writeText($("snippet").textContent);
  $("copy").textContent = word("copied");
  setTimeout(() => ($("copy").textContent = word("copy")), 1500);
};
openTask(location.hash.slice(1));
loadCatalog();
