/** One request's course as a drawing: until the KV is handed over on the left, decode on the right.
 *
 * Each half has a scale of its own, the same for all requests. A leg is a lane of its own, so a
 * request that another worker goes on with is seen to change lanes.
 */

import { arrange, mark, say, svg } from "./dom.js";

export const LANE = 24;
/** Of more attempts than these, the last share a lane. */
const LANES = 4;
/** Where the left half ends, as a share of the width. */
export const BORDER = 0.46;

const PARTS = ["wait", "dots", "prefill", "chunks", "kv", "tail", "layers", "base", "decode", "again", "end"];

export class Track {
  constructor() {
    this.root = svg("svg", { class: "track", "aria-hidden": "true", height: LANE });
    this.paths = {};
    for (const part of PARTS) this.root.append((this.paths[part] = svg("path", { class: part })));
    this.first = svg("path", { class: "first" });
    this.root.append(this.first);
    this.labels = svg("g", { class: "labels" });
    this.root.append(this.labels);
  }

  /** `scale`: {width (pixels), start, decode (seconds of each half), rate (tokens/s at full height)};
   * `nameOf`: workers by id. */
  draw(request, now, scale, nameOf) {
    const pen = new Pen(request, now, scale);
    const lanes = Math.max(1, Math.min(request.legs.length, LANES));
    mark(this.root, "height", lanes * LANE);
    mark(this.root, "width", scale.width);
    pen.waiting(request.waitingSince, now, Math.min(request.legs.length, LANES - 1));
    request.legs.forEach((leg, index) => pen.leg(leg, Math.min(index, LANES - 1), index));
    pen.finish();
    for (const part of PARTS) mark(this.paths[part], "d", pen.d[part].join(""));
    mark(this.first, "d", pen.first);
    const told = request.legs.slice(1, LANES).map((leg, index) => this.#label(request, leg, index + 1, pen, nameOf));
    arrange(this.labels, told);
  }

  /** Beside the lane that another worker goes on in: why, and who. */
  #label(request, leg, lane, pen, nameOf) {
    const label = this.labels.children[lane - 1] ?? svg("text", { "text-anchor": "end" });
    mark(label, "x", (pen.x(leg.queuedAt) - 8).toFixed(0));
    mark(label, "y", lane * LANE + 14);
    say(label, `${request.legs[lane - 1].reason ?? ""}: ${nameOf(leg.decode)} goes on`);
    return label;
  }
}

class Pen {
  constructor(request, now, scale) {
    this.request = request;
    this.now = request.ended?.at ?? now;
    this.scale = scale;
    this.border = request.handedOver;
    this.half = scale.width * BORDER;
    this.d = Object.fromEntries(PARTS.map((part) => [part, []]));
    this.first = "";
  }

  /** Pixels from the left for a time. */
  x(at) {
    const { request, scale, border, half } = this;
    const right = scale.width - 3;
    if (border === null || at <= border) {
      return Math.max(1, Math.min(half - 4, (half - 4) * ((at - request.arrived) / scale.start)));
    }
    return Math.min(right, half + (right - half) * ((at - border) / scale.decode));
  }

  bar(part, from, to, y, height, least = 0) {
    const [a, b] = [this.x(from), this.x(to)];
    const width = Math.max(b - a, least);
    if (width > 0.2) this.d[part].push(`M${a.toFixed(1)} ${y}h${width.toFixed(1)}v${height}h${(-width).toFixed(1)}z`);
  }

  tick(part, at, y, height) {
    this.d[part].push(`M${this.x(at).toFixed(1)} ${y}v${height}`);
  }

  waiting(since, until, lane) {
    if (since !== null && !this.request.ended) this.bar("wait", since, until, lane * LANE + 8, 4, 2);
  }

  leg(leg, lane, index) {
    const y = lane * LANE;
    const end = leg.endedAt ?? this.now;
    this.bar("wait", leg.queuedAt, leg.placedAt, y + 8, 4);
    const from = Math.max(leg.chunks[0]?.at ?? leg.placedAt, leg.placedAt);
    if (from > leg.placedAt) this.bar("wait", leg.placedAt, from, y + 8, 4);
    const computed = leg.computedAt ?? leg.decodeBegan ?? end;
    if (this.request.earlier === null || index) this.bar("prefill", from, computed, y + 4, 8, 3);
    for (const chunk of leg.chunks.slice(1, -1)) this.tick("chunks", chunk.at, y + 4, 8);
    if (leg.kv.length) this.handOver(leg, from, computed, leg.kvDone ?? leg.decodeBegan ?? end, y);
    if (leg.firstAt && leg.firstAt === this.request.firstAt) {
      const x = Math.max(5, this.x(leg.firstAt));
      this.first = `M${x.toFixed(1)} ${y}l5 6l-5 6l-5 -6z`;
    }
    this.decode(leg, end, y, index);
    if (index) this.again(leg, lane);
  }

  handOver(leg, from, computed, done, y) {
    const began = Math.min(leg.kv[0], computed);
    this.bar("kv", Math.max(from, began), Math.min(done, computed), y + 14, 4, 2);
    this.bar("tail", Math.max(computed, began), done, y + 14, 4);
    for (const at of leg.kv.slice(1, -1)) this.tick("layers", at, y + 14, 4);
  }

  decode(leg, end, y, index) {
    const began = leg.decodeBegan ?? (leg.kvDone && leg.firstAt ? leg.kvDone : null);
    if (began === null) return;
    if (!index) {
      const [a, b] = [this.x(began), this.half];
      if (b - a > 8) this.d.dots.push(`M${(a + 4).toFixed(1)} ${y + 19.5}H${(b - 2).toFixed(1)}`);
    }
    const start = index ? began : Math.max(began, this.border);
    this.bar("base", start + 1e-6, end, y + 19, 1.5, 2);
    for (const { from, at, rate } of leg.points) {
      const height = Math.max(2, 17 * Math.min(1, rate / this.scale.rate));
      const a = Math.max(this.x(Math.max(from, start + 1e-6)), index ? 0 : this.half);
      const width = this.x(at) - a;
      const gap = width > 4 ? 1 : 0;
      if (width > 0.2) this.d.decode.push(`M${a.toFixed(1)} ${(y + 20 - height).toFixed(1)}h${(width - gap).toFixed(1)}v${height.toFixed(1)}h${(gap - width).toFixed(1)}z`);
    }
  }

  /** From the lane before into this one. */
  again(leg, lane) {
    const x = this.x(leg.queuedAt);
    const top = Math.max(0, lane - 1) * LANE + 4;
    this.d.again.push(`M${x.toFixed(1)} ${top}V${lane * LANE + 6}m-3 -4l3 4l3 -4`);
  }

  finish() {
    const { ended, legs } = this.request;
    if (!ended) return;
    const lane = Math.min(Math.max(legs.length - 1, 0), LANES - 1);
    this.d.end.push(`M${(this.x(ended.at) + 1).toFixed(1)} ${lane * LANE + 3}v18`);
  }
}
