// The table of what every model does, from the server-sent events of /live, while it is open.
import { make } from "./answers.js";

const COLUMNS = ["route", "replicas", "perSecond", "failed", "p50", "p99", "waiting", "slots"];
const AGAIN_MS = 3000;

/** Fill `table` while `details` is open; `open` asks for the stream, `events` reads it, `word` is in the page's language. */
export function showLive(details, table, { open, events, number, word }) {
  let watching = null;
  const head = () => make("thead", {}, make("tr", {}, ...COLUMNS.map((name) => make("th", { scope: "col", textContent: word(name) }))));

  async function watch() {
    const mine = (watching = new AbortController());
    while (watching === mine) {
      try {
        const response = await open(mine.signal);
        if (!response.ok) throw new Error(response.statusText);
        for await (const event of events(response)) table.replaceChildren(head(), make("tbody", {}, ...event.models.map(row)));
      } catch {
        // It is asked again below: the server may be restarting.
      }
      if (watching === mine) await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  function row(model) {
    const milliseconds = (value) => (value === null ? "–" : `${number(value, value < 10 ? 1 : 0)} ms`);
    const values = [
      number(model.replicas, 0), number(model.requests_per_s, 1), model.failed === null ? "–" : `${number(100 * model.failed, 1)} %`,
      milliseconds(model.p50_ms), milliseconds(model.p99_ms), number(model.waiting, 0), model.slots ? `${model.taken_slots}/${model.slots}` : "–",
    ];
    return make("tr", {}, make("th", { scope: "row" }, make("code", { textContent: model.route })), ...values.map((value) => make("td", { textContent: value })));
  }

  details.addEventListener("toggle", () => {
    watching?.abort();
    watching = null;
    if (details.open) watch();
  });
  table.replaceChildren(head());
}
