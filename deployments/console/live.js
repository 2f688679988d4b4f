// What every model does: the server-sent events of /live while somebody looks, and the table of them.
import { make, refill } from "./answers.js";
import { events } from "./client.js";

const COLUMNS = ["replicas", "perSecond", "failed", "p50", "p99", "waiting", "slots"];
const AGAIN_MS = 3000;

/** One stream for all who look: the function that is returned calls `listener` with the models of each event, until what
 * it returns is called. `open` asks for the stream. */
export function liveModels(open) {
  const listeners = new Set();
  let watching = null;

  async function watch() {
    const mine = (watching = new AbortController());
    while (watching === mine) {
      try {
        const response = await open(mine.signal);
        if (!response.ok) throw new Error(response.statusText);
        for await (const event of events(response)) for (const listener of listeners) listener(event.models);
      } catch {
        // It is asked again below: the server may be restarting.
      }
      if (watching === mine) await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  return (listener) => {
    listeners.add(listener);
    if (!watching) watch();
    return () => {
      listeners.delete(listener);
      if (listeners.size) return;
      watching?.abort();
      watching = null;
    };
  };
}

/** The numbers of one model as texts, by the names of their columns. */
export function numbersOf(model, number) {
  const milliseconds = (value) => (value === null ? "–" : `${number(value, value < 10 ? 1 : 0)} ms`);
  return {
    replicas: number(model.replicas, 0), perSecond: number(model.requests_per_s, 1), failed: model.failed === null ? "–" : `${number(100 * model.failed, 1)} %`,
    p50: milliseconds(model.p50_ms), p99: milliseconds(model.p99_ms), waiting: number(model.waiting, 0), slots: model.slots ? `${model.taken_slots}/${model.slots}` : "–",
  };
}

/** Fill `table` while `details` is open; `watch` is of `liveModels`, `word` in the page's language. */
export function showLive(details, table, { watch, number, word }) {
  let stop = null;
  const head = () => make("thead", {}, make("tr", {}, ...["route", ...COLUMNS].map((name) => make("th", { scope: "col", textContent: word(name) }))));

  function row(model) {
    const values = numbersOf(model, number);
    const link = make("a", { href: `#${model.route}` }, make("code", { textContent: model.route }));
    return make("tr", {}, make("th", { scope: "row" }, link), ...COLUMNS.map((name) => make("td", { textContent: values[name] })));
  }

  const fill = (models) => refill(table, head(), make("tbody", {}, ...models.map(row)));

  details.addEventListener("toggle", () => {
    stop?.();
    stop = details.open ? watch(fill) : null;
  });
  table.replaceChildren(head());
}
