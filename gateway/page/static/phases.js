/** A request's course in words, for whoever opens its row. */

import { bytes, count, milliseconds, several } from "./format.js";

/** Lines of {name, text}, in order. */
export function phases(request, fleet) {
  const lines = [
    {
      name: "asked",
      text: `${request.id}: ${several(request.promptTokens, "prompt token")}, at most ${several(request.maxTokens, "token")}`
        + (request.choices > 1 ? `, ${request.choices} choices` : ""),
    },
  ];
  request.legs.forEach((leg, index) => lines.push(...attempt(leg, index, fleet)));
  if (request.ended && request.ended.reason !== "unseen") {
    const { reason, total_ms, itl_p50_ms, itl_max_ms, status } = request.ended;
    const gaps = itl_p50_ms === null ? "" : `; between tokens ${milliseconds(itl_p50_ms)}, at most ${milliseconds(itl_max_ms)}`;
    lines.push({ name: "ended", text: `${reason} (${status}) after ${milliseconds(total_ms)}${gaps}` });
  }
  return lines;
}

function attempt(leg, index, fleet) {
  const lines = [];
  const say = (name, text) => lines.push({ name: index ? `${name}, attempt ${index + 1}` : name, text });
  const name = (id) => fleet.nameOfId(id);
  say("queued", `${milliseconds(since(leg.queuedAt, leg.placedAt))}, then placed on ${name(leg.decode)}`
    + (leg.prefill ? `, its prompt on ${name(leg.prefill)}` : ", which computes the prompt itself"));
  const began = leg.chunks[0]?.at;
  if (began) {
    const chunks = Math.max(leg.chunks.length - 1, 1);
    say("prefill", `${count(leg.total - leg.cached)} of ${several(leg.total, "token")} on ${name(leg.computer)}, ${count(leg.cached)} cached`
      + (leg.computedAt ? `: ${milliseconds(since(began, leg.computedAt))}, told in ${several(chunks, "part")}` : ""));
  }
  if (leg.kv.length) {
    const tail = leg.kvDone && leg.computedAt ? Math.max(0, since(leg.computedAt, leg.kvDone)) : null;
    say("KV", `${bytes(leg.bytes)} of ${bytes(leg.totalBytes)}, ${leg.layers} of ${several(leg.totalLayers, "layer")}, by ${leg.transport}`
      + (tail === null ? "" : `; ${milliseconds(tail)} of it after the prompt was computed`));
  }
  if (leg.firstAt && !index) say("first token", `${milliseconds(since(leg.queuedAt, leg.firstAt))} after arrival`);
  if (leg.decodeBegan) {
    say("decode", `on ${name(leg.decode)}` + (leg.endedAt ? `: ${milliseconds(since(leg.decodeBegan, leg.endedAt))}` : ""));
  }
  if (leg.message) say("lost", `${leg.reason}: ${leg.message}`);
  return lines;
}

function since(from, to) {
  return 1000 * (to - from);
}
