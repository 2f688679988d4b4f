// How the page asks the server: with the key of this tab. What answers say: reasons of failures, and server-sent events.

/** What asks: `send` asks the person for a key where the ingress wants one, `ask` only until that was declined once. */
export function client(word) {
  let declined = false;

  async function send(url, options = {}, asks = () => true) {
    for (;;) {
      const key = sessionStorage.getItem("key");
      const response = await fetch(url, { ...options, headers: { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) } });
      if (response.status !== 401) return response;
      if (sessionStorage.getItem("key") !== key) continue; // another request has asked for one meanwhile
      sessionStorage.removeItem("key");
      const given = asks() ? prompt(word("key"))?.trim() : null;
      if (!given) {
        declined = true;
        return response;
      }
      sessionStorage.setItem("key", given);
    }
  }

  return { send, ask: (url, options) => send(url, options, () => !declined) };
}

/** Why a response is none that was hoped for, in one line. */
export async function reason(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return `${response.status} · ${error.message ?? error}`;
  } catch {
    return `${response.status} · ${text.slice(0, 300)}`;
  }
}

/** The server-sent events of a response, one decoded payload after the other. */
export async function* events(response) {
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
