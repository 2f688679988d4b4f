// Calls of tools: how an answer's stream adds up to them, how they are shown, and where their results are written.
import { make } from "./answers.js";

/** Add what an event of a stream has of calls to `calls`, as OpenAI's API names their parts. */
export function addCalls(calls, deltas = []) {
  for (const { index, id, function: called } of deltas) {
    const call = (calls[index] ??= { id, type: "function", function: { name: "", arguments: "" } });
    call.function.name += called.name ?? "";
    call.function.arguments += called.arguments ?? "";
  }
}

/** Whether no call was cut by the end of the answer: only such calls can be answered. */
export function areComplete(calls) {
  try {
    calls.forEach((one) => JSON.parse(one.function.arguments));
    return true;
  } catch {
    return false;
  }
}

/** The calls of a message as elements. */
export function shownCalls(calls, word) {
  const items = calls.map((one) => make("li", {}, make("code", { textContent: `${one.function.name}(${one.function.arguments})` })));
  return make("ul", { className: "calls", ariaLabel: word("calls") }, ...items);
}

/** A field for the result of each call; `results` holds what is written, by the call's id. */
export function resultFields(calls, results, word, changed) {
  const fields = calls.map((one) => {
    const name = word("resultOf").replace("{name}", one.function.name);
    const area = make("textarea", { rows: 1, required: true, value: results[one.id] ?? "", spellcheck: false });
    area.oninput = () => ((results[one.id] = area.value), changed());
    return make("label", {}, make("span", { textContent: name }), area);
  });
  return [make("p", { className: "note", textContent: word("answerCalls") }), ...fields];
}

/** The messages that hold the results. */
export const resultMessages = (calls, results) => calls.map((one) => ({ role: "tool", tool_call_id: one.id, content: results[one.id] ?? "" }));
