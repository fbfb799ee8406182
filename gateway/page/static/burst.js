/** Four questions at once (of the six connections that a browser makes, one has the feed, one the chat), of
 * different lengths, so that there is something to see. */

import { chat } from "./api.js";
import { byId, say } from "./dom.js";

const TOPIC = "Prefill computes a prompt's KV cache; decode goes on from it, token by token. ";
const LENGTHS = [2, 6, 10, 14];

export function burst(options, failed) {
  const button = byId("burst");
  const text = button.textContent;
  let abort = null;

  async function ask(length) {
    const note = `${crypto.getRandomValues(new Uint32Array(1))[0]}: `; // or all would be cached
    const content = `${note}${TOPIC.repeat(length)}What does that mean?`;
    const body = await options.body([{ role: "user", content }]);
    const answer = chat(body, options.key, abort.signal, () => {});
    while (!(await answer.next()).done);
  }

  button.addEventListener("click", async () => {
    if (abort) {
      abort.abort();
      return;
    }
    abort = new AbortController();
    say(button, "Stop these");
    const ended = await Promise.allSettled(LENGTHS.map(ask));
    const error = ended.find((one) => one.reason && one.reason.name !== "AbortError");
    failed(error ? error.reason.message : null);
    abort = null;
    say(button, text);
  });
}
