// The request that a form stands for, and the same request as code.
import { resultMessages } from "./calls.js";

/** Path and body of a request to `form`; `texts` are by field, `parameters` as the API takes them. */
export function requestOf(form, texts, parameters, history, results) {
  if (form.kind === "chat") {
    // While the next message is not written yet, the code shows the request that was sent last.
    const calls = history.at(-1)?.tool_calls;
    const written = texts.message || !history.length ? [...history, { role: "user", content: texts.message }] : history.slice(0, -1);
    const messages = calls ? [...history, ...resultMessages(calls, results)] : written;
    return { path: form.path, body: { model: "sextet", messages, stream: true, stream_options: { include_usage: true }, ...parameters } };
  }
  const values = form.fields.map((name) => texts[name]);
  const inputs = values.length === 1 ? values[0] : Object.fromEntries(form.fields.map((name, index) => [name, values[index]]));
  const body = { inputs };
  if (Object.keys(parameters).length) body.parameters = parameters;
  if (form.streams) body.stream = true;
  return { path: form.path, body };
}

/** The request as code, by the name of the client: curl, requests, and those of huggingface_hub and openai that fit. */
export function snippets(origin, task, form, request) {
  const url = `${origin}/${request.path}`;
  const { body } = request;
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const made = { curl: `curl ${body.stream ? "-N " : ""}${url} \\\n  -H 'content-type: application/json' \\\n  -d '${quoted}'` };
  if (form.kind === "chat") {
    const { stream: _stream, stream_options: _options, ...asked } = body;
    const call = `client.chat.completions.create(\n${named(asked)}    stream=True,\n)`;
    made.openai = `from openai import OpenAI\n\nclient = OpenAI(base_url="${origin}/${task.name}/v1", api_key="none")\nstream = ${call}\nfor chunk in stream:\n    print(chunk.choices[0].delta.content or "", end="", flush=True)`;
    return made;
  }
  if (task.client) {
    const { inputs, parameters = {} } = body;
    const first = typeof inputs === "string" ? `    ${python(inputs, 1)},\n` : named(inputs);
    const call = `client.${task.client}(\n${first}${named(parameters)}${body.stream ? "    stream=True,\n" : ""})`;
    const shown = body.stream ? `for token in ${call}:\n    print(token, end="", flush=True)` : `print(${call})`;
    made.huggingface_hub = `from huggingface_hub import InferenceClient\n\nclient = InferenceClient(model="${url}")\n${shown}`;
  }
  const { stream: _whole, ...asked } = body;
  made.requests = `import requests\n\nbody = ${python(asked, 0)}\nprint(requests.post("${url}", json=body).json())`;
  return made;
}

/** Keyword arguments, one a line. */
const named = (values) => Object.entries(values).map(([name, value]) => `    ${name}=${python(value, 1)},\n`).join("");

/** A JSON value as a Python literal: on one line where that is short; `depth` is how far its first line is indented. */
function python(value, depth) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = (deeper) => (Array.isArray(value) ? value.map((one) => python(one, deeper)) : Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${python(one, deeper)}`));
  const line = `${open}${items(depth).join(", ")}${close}`;
  if (line.length <= 80 && !line.includes("\n")) return line;
  const indent = "    ".repeat(depth);
  return `${open}\n${items(depth + 1).map((one) => `${indent}    ${one},\n`).join("")}${indent}${close}`;
}
