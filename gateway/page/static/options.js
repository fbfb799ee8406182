/** What every question is asked with: key, model, limits, system prompt. */

import { models } from "./api.js";
import { byId, el, mark } from "./dom.js";

const KEY = "baton-key";

export class Options {
  constructor(needsKey) {
    this.needsKey = needsKey;
    byId("key-field").hidden = !needsKey;
    byId("key").value = needsKey ? (sessionStorage.getItem(KEY) ?? "") : "";
    byId("key").addEventListener("change", () => {
      sessionStorage.setItem(KEY, this.key);
      this.load().catch((error) => this.#refused(error));
    });
  }

  get key() {
    return this.needsKey ? byId("key").value.trim() : "";
  }

  /** Have the models to choose from. Throws ApiError. */
  async load() {
    if (this.needsKey && !this.key) return;
    const names = await models(this.key);
    byId("model").replaceChildren(...names.map((name) => el("option", {}, name)));
    this.#refused(null);
  }

  /** The body of a question. Throws ApiError. */
  async body(messages) {
    if (!byId("model").value) await this.load();
    const system = byId("system").value.trim();
    const chosen = { model: byId("model").value, messages };
    if (system) chosen.messages = [{ role: "system", content: system }, ...messages];
    for (const [id, name] of [["max-tokens", "max_tokens"], ["temperature", "temperature"]]) {
      if (byId(id).value !== "") chosen[name] = Number(byId(id).value);
    }
    return chosen;
  }

  #refused(error) {
    mark(byId("key"), "aria-invalid", error ? "true" : null);
    byId("key-note").textContent = error ? error.message : "Kept until this tab is closed.";
  }
}
