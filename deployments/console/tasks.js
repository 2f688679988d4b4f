// The six tasks: what each asks for, which parameters it offers, examples, and how its request and answer look.
const RIVER = "The Rhine is a river that begins in the Swiss Alps. It flows through Germany and reaches the North Sea in the Netherlands after about 1,230 kilometres.";
const ARTICLE = "Researchers in Seoul measured how much water the trees of a city park give back to the air. Over two summers they followed 120 trees with small sensors. The shade and the evaporation together cooled the paths below by up to four degrees, and the effect was largest in the late afternoon, when people leave their offices. The city wants to plant more of them along its main streets.";

const number = (name, initial, min, max, step) => ({ name, kind: "number", initial, min, max, step });
const choice = (name, options) => ({ name, kind: "choice", options });

export const TASKS = {
  "text-classification": {
    fields: ["text"],
    parameters: [number("top_k", "", 1, 100, 1), choice("function_to_apply", ["softmax", "sigmoid", "none"])],
    examples: [{ text: "정말 재미있는 영화였어요. 배우들의 연기도 훌륭했습니다." }, { text: "The plot was thin and the ending made no sense." }],
    inputs: (values) => values.text,
  },
  "question-answering": {
    fields: ["question", "context"],
    parameters: [number("top_k", "", 1, 20, 1), number("max_answer_len", "", 1, 200, 1), choice("handle_impossible_answer", ["true", "false"])],
    examples: [
      { question: "Where does the Rhine end?", context: RIVER },
      { question: "김민수는 어디에서 태어났나요?", context: "김민수는 1998년 부산에서 태어나 런던에서 공부했다. 지금은 서울에서 일한다." },
    ],
    inputs: (values) => ({ question: values.question, context: values.context }),
  },
  "token-classification": {
    fields: ["text"],
    parameters: [choice("aggregation_strategy", ["simple", "first", "average", "max", "none"])],
    preset: { aggregation_strategy: "simple" },
    examples: [{ text: "Anna Smith flew from Paris to Seoul to meet the people of Samsung." }, { text: "김민수는 부산에서 태어나 서울대학교에서 공부했다." }],
    inputs: (values) => values.text,
  },
  translation: {
    fields: ["text"],
    parameters: [],
    examples: [{ text: "The train to Paris leaves at noon." }, { text: "I would like a cup of coffee, please." }],
    inputs: (values) => values.text,
  },
  summarization: {
    fields: ["text"],
    parameters: [],
    examples: [{ text: ARTICLE }, { text: RIVER }],
    inputs: (values) => values.text,
  },
  "text-generation": {
    modes: ["chat", "complete"],
    fields: { chat: ["message"], complete: ["prompt"] },
    parameters: [number("max_tokens", 160, 1, 4096, 1), number("temperature", 0.7, 0, 2, 0.1), number("top_p", "", 0.05, 1, 0.05), number("seed", "", 0, 4294967295, 1)],
    examples: {
      chat: [{ message: "Write a haiku about rivers." }, { message: "Explain in two sentences why the sky is blue." }],
      complete: [{ prompt: "The capital of France is" }, { prompt: "Once upon a time, a small robot" }],
    },
  },
};

/** The request that a task's form stands for: its path, and its body. */
export function requestOf(task, mode, values, parameters, history) {
  if (task !== "text-generation") {
    return { path: task, body: { inputs: TASKS[task].inputs(values), ...(Object.keys(parameters).length ? { parameters } : {}) } };
  }
  // Before the next message is written, the conversation up to its last answer is what was asked.
  const messages = values.message || !history.length ? [...history, { role: "user", content: values.message }] : history.slice(0, -1);
  const body = mode === "chat" ? { messages } : { prompt: values.prompt };
  return {
    path: `text-generation/v1/${mode === "chat" ? "chat/completions" : "completions"}`,
    body: { model: "sextet", ...body, stream: true, stream_options: { include_usage: true }, ...parameters },
  };
}

/** The same request in the languages that people paste from. */
export function snippets(origin, task, mode, request) {
  const url = `${origin}/${request.path}`;
  const quoted = JSON.stringify(request.body).replaceAll("'", "'\\''");
  const python = (value) => JSON.stringify(value, null, 4).replace(/: true/g, ": True").replace(/: false/g, ": False").replace(/: null/g, ": None");
  const made = { curl: `curl ${request.body.stream ? "-N " : ""}${url} \\\n  -H 'content-type: application/json' \\\n  -d '${quoted}'` };
  if (task === "text-generation") {
    const { stream, stream_options: _options, ...asked } = request.body;
    const call = mode === "chat" ? "client.chat.completions.create" : "client.completions.create";
    const piece = mode === "chat" ? 'chunk.choices[0].delta.content or ""' : "chunk.choices[0].text";
    const lines = Object.entries(asked).map(([name, value]) => `    ${name}=${python(value).replaceAll("\n", "\n    ")},`);
    made.openai = `from openai import OpenAI\n\nclient = OpenAI(base_url="${origin}/v1", api_key="none")\nstream = ${call}(\n${lines.join("\n")}\n    stream=True,\n)\nfor chunk in stream:\n    print(${piece}, end="", flush=True)`;
  } else {
    const { inputs, parameters = {} } = request.body;
    const method = task.replace("-", "_");
    const given = typeof inputs === "string" ? [python(inputs)] : Object.entries(inputs).map(([name, value]) => `${name}=${python(value)}`);
    const named = Object.entries(parameters).map(([name, value]) => `${name}=${python(value)}`);
    made.python = `from huggingface_hub import InferenceClient\n\nclient = InferenceClient(model="${origin}/${task}")\nprint(client.${method}(${[...given, ...named].join(", ")}))`;
  }
  return made;
}
