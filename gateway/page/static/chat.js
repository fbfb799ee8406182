/** The chat: a conversation, its answers as they come. */

import { chat } from "./api.js";
import { byId, el, mark, say } from "./dom.js";
import { milliseconds, rate, several } from "./format.js";

/** Milliseconds over which a rate says something. */
const LONG = 200;

export class Chat {
  #options;
  #own; // called with the id of each request
  #messages = [];
  #abort = null;
  #history = byId("history");

  constructor(options, own) {
    this.#options = options;
    this.#own = own;
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    });
    byId("question").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#ask();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#stop();
    });
    byId("stop").addEventListener("click", () => this.#stop());
    byId("clear").addEventListener("click", () => this.#clear());
  }

  async #ask() {
    const field = byId("question");
    const question = field.value.trim() || (this.#messages.length ? "" : field.placeholder);
    if (!question || this.#abort) return;
    field.value = "";
    this.#history.querySelector(".hint")?.remove();
    this.#messages.push({ role: "user", content: question });
    this.#show("You", "user", question);
    const shown = this.#show("Baton", "assistant", "");
    this.#busy(new AbortController());
    const answer = new Answer(shown, this.#history);
    try {
      const body = await this.#options.body(this.#messages);
      for await (const part of chat(body, this.#options.key, this.#abort.signal, this.#own)) {
        if (typeof part === "number") answer.tokens = part;
        else answer.add(part);
      }
      answer.end("");
    } catch (error) {
      answer.end(error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
      if (error.status === 401) byId("key").focus();
    } finally {
      if (answer.text) this.#messages.push({ role: "assistant", content: answer.text });
      else this.#messages.pop(); // so that it may be asked again
      this.#busy(null);
    }
  }

  #stop() {
    this.#abort?.abort();
  }

  #clear() {
    this.#stop();
    this.#messages = [];
    this.#history.replaceChildren();
    byId("clear").disabled = true;
    byId("question").focus();
  }

  #busy(abort) {
    this.#abort = abort;
    const stop = byId("stop");
    const focused = document.activeElement === stop;
    stop.hidden = abort === null;
    byId("send").hidden = abort !== null;
    if (focused) byId("question").focus();
    mark(this.#history, "aria-busy", abort ? "true" : null);
    byId("clear").disabled = false;
  }

  #show(who, role, text) {
    const shown = {
      text: el("p", { class: "text" }, text),
      note: el("p", { class: "note" }),
    };
    this.#history.append(
      el("article", { class: `message ${role}`, "aria-label": who }, el("h3", {}, who), shown.text, shown.note),
    );
    this.#history.scrollTop = this.#history.scrollHeight;
    return shown;
  }
}

/** An answer that is being written; drawn once a frame. */
class Answer {
  text = "";
  tokens = null;
  #shown;
  #history;
  #began = performance.now();
  #first = null;
  #due = false;
  #ended = false;

  constructor(shown, history) {
    this.#shown = shown;
    this.#history = history;
    say(shown.note, "waiting for the first token");
  }

  add(text) {
    this.#first ??= performance.now();
    this.text += text;
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => this.#draw());
  }

  /** It is over; `why` where it is not as it should be. */
  end(why, failed = false) {
    this.#draw();
    this.#ended = true;
    const told = why ? [why] : [];
    if (this.#first !== null) told.push(`first token ${milliseconds(this.#first - this.#began)}`);
    if (this.tokens !== null) {
      const took = performance.now() - this.#first;
      told.push(several(this.tokens, "token"));
      if (took > LONG) told.push(`${rate((1000 * (this.tokens - 1)) / took)} tokens/s`);
    }
    say(this.#shown.note, told.join(" · "));
    mark(this.#shown.note, "class", failed ? "note error" : "note");
    // Read aloud once, when it is whole.
    say(byId("said"), failed ? `No answer: ${why}` : `Answer: ${this.text}`);
  }

  #draw() {
    this.#due = false;
    if (this.#ended) return;
    const { scrollTop, scrollHeight, clientHeight } = this.#history;
    const follows = scrollHeight - scrollTop - clientHeight < 40;
    say(this.#shown.text, this.text);
    if (this.#first !== null) say(this.#shown.note, "");
    if (follows) this.#history.scrollTop = this.#history.scrollHeight;
  }
}
