/** The newest requests, one row each: who has it, how far it is, its course. */

import { arrange, byId, el, mark, say } from "./dom.js";
import { count, milliseconds, nice, rate, several } from "./format.js";
import { phases } from "./phases.js";
import { BORDER, Track } from "./track.js";

export class Timeline {
  #fleet;
  #rows = new Map(); // by id
  #scale = { width: 0, start: 1, decode: 1, rate: 1 };
  #list = byId("timeline");

  constructor(fleet) {
    this.#fleet = fleet;
  }

  /** Returns whether it goes on moving by itself. */
  draw() {
    const fleet = this.#fleet;
    const shown = [...fleet.requests.values()].reverse();
    const now = fleet.now;
    const rows = shown.map((request) => this.#row(request));
    arrange(this.#list, rows.map((row) => row.root));
    for (const id of this.#rows.keys()) if (!fleet.requests.has(id)) this.#rows.delete(id);
    const scale = this.#measure(shown, now);
    const changed = JSON.stringify(scale) !== JSON.stringify(this.#scale);
    this.#scale = scale;
    shown.forEach((request, index) => {
      if (changed || !rows[index].done) this.#fill(rows[index], request, now);
    });
    const open = shown.filter((request) => !request.ended).length;
    const beyond = fleet.full ? Math.max(0, fleet.gateway.open - open) : 0;
    say(byId("more"), `${several(open, "request")} under way${beyond ? `, ${count(beyond)} more not shown` : ""}`);
    byId("empty").hidden = shown.length > 0;
    byId("axis").hidden = !shown.length;
    say(byId("axis-start"), milliseconds(1000 * scale.start));
    say(byId("axis-end"), `${milliseconds(1000 * scale.decode)} later; full height: ${rate(scale.rate)} tokens/s`);
    return open > 0;
  }

  #measure(shown, now) {
    let [start, decode] = [0.02, 0.2];
    const rates = [];
    for (const request of shown) {
      const end = request.ended?.at ?? now;
      const border = request.handedOver ?? end;
      if (request.earlier === null) start = Math.max(start, border - request.arrived);
      decode = Math.max(decode, end - border);
      for (const leg of request.legs) for (const point of leg.points) rates.push(point.rate);
    }
    // Tokens that waited somewhere come all at once: such a bar is cut off.
    const most = rates.sort((a, b) => a - b)[Math.floor(0.9 * (rates.length - 1))];
    const width = this.#list.querySelector(".course")?.clientWidth ?? 0;
    this.#list.parentElement.style.setProperty("--border", `${100 * BORDER}%`);
    return { width, start: nice(start), decode: nice(decode), rate: nice(most) };
  }

  #row(request) {
    const known = this.#rows.get(request.id);
    if (known) return known;
    const part = (name) => el("span", { class: name });
    const row = { id: part("id"), route: part("route"), state: part("told"), track: new Track(), done: false };
    const course = el("span", { class: "course" }, row.track.root);
    row.detail = el("dl", { class: "phases" });
    const names = el("span", { class: "names" }, row.id, row.route);
    row.details = el("details", {}, el("summary", {}, names, course, row.state), row.detail);
    row.details.addEventListener("toggle", () => this.#explain(row, request));
    row.root = el("li", {}, row.details);
    this.#rows.set(request.id, row);
    return row;
  }

  #fill(row, request, now) {
    say(row.id, request.mine ? "yours" : short(request.id));
    mark(row.root, "data-mine", request.mine ? "yes" : null);
    say(row.route, route(request, this.#fleet));
    const { word, text } = standing(request);
    say(row.state, text);
    mark(row.root, "data-phase", word);
    if (this.#scale.width) row.track.draw(request, now, this.#scale, (id) => this.#fleet.nameOfId(id));
    this.#explain(row, request);
    row.done = request.ended !== null;
  }

  #explain(row, request) {
    if (!row.details.open) return;
    const told = phases(request, this.#fleet);
    arrange(row.detail, told.map(({ name, text }, index) => {
      const line = row.detail.children[index] ?? el("div", {}, el("dt"), el("dd"));
      say(line.firstChild, name);
      say(line.lastChild, text);
      return line;
    }));
  }
}

function short(id) {
  return id.slice(-6);
}

function route(request, fleet) {
  if (!request.legs.length) return "no worker yet";
  const runs = request.legs.slice(-3).map((leg) => {
    const decode = fleet.nameOfId(leg.decode);
    return leg.prefill && leg.prefill !== leg.decode ? `${fleet.nameOfId(leg.computer)} → ${decode}` : decode;
  });
  return (request.legs.length > 3 ? "… " : "") + runs.join(" ⤳ ");
}

/** Where it stands: a word for its looks, a text for people. */
function standing(request) {
  const leg = request.leg;
  const tokens = request.tokenCount;
  const asked = request.maxTokens * request.choices;
  if (request.ended) {
    const { reason, status, ttft_ms } = request.ended;
    if (reason === "unseen") return { word: "ended", text: "ended, unseen" };
    const good = status === 200;
    const again = request.legs.length > 1 ? `, ${request.legs.length} attempts` : "";
    return {
      word: good ? "ended" : "failed",
      text: `${reason} · ${several(tokens, "token")}${again} · first ${milliseconds(ttft_ms)}`,
    };
  }
  if (request.waitingSince !== null) {
    return { word: "queued", text: leg ? `${leg.reason}: goes on elsewhere` : `queued · ${several(request.promptTokens, "token")}` };
  }
  if (leg.points.length || (request.firstAt && leg.kvDone)) {
    return { word: "decode", text: `${tokens} of ${asked} tokens · ${rate(request.tokenRate)}/s` };
  }
  const share = leg.kv.length ? `KV ${Math.floor((100 * leg.bytes) / leg.totalBytes)} %` : "";
  if (share && leg.computedAt) {
    return { word: "kv", text: `${share} · ${leg.layers} of ${several(leg.totalLayers, "layer")}` };
  }
  const computed = leg.chunks.at(-1)?.computed ?? 0;
  if (request.firstAt && leg.firstAt) return { word: "decode", text: `${tokens} of ${asked} tokens` };
  return { word: "prefill", text: `prefill ${computed} of ${leg.total}${share && ` · ${share}`}` };
}
