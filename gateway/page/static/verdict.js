/** Which workers are slow, in plain words: each beside the middle one of its side. */

import { sideOf } from "./fleet.js";
import { count, median, milliseconds, rate } from "./format.js";

/** So many times slower than the others is slow. */
const SLOW = 2;
/** Steps that differ by less than this many milliseconds are alike. */
const ALIKE = 5;

/** Of each worker that stands out, by address: {kind: "slow" or "busy", text}. */
export function verdicts(fleet) {
  const found = new Map();
  for (const side of ["prefill", "decode", "both"]) {
    const those = [...fleet.workers.values()].filter((one) => sideOf(one) === side && one.state === "healthy");
    for (const worker of those) {
      const mine = fleet.paces.get(worker.address);
      const others = those.filter((one) => one !== worker).map((one) => fleet.paces.get(one.address));
      const verdict = (side !== "prefill" && byTokens(mine, others)) || (side !== "decode" && byPrompts(mine, others));
      if (verdict) found.set(worker.address, verdict);
    }
  }
  return found;
}

/** By its steps, else by what its streams get: it may be held up between steps. */
function byTokens(mine, others) {
  const [step, steps] = [mine.step, usual(others, "step")];
  const [stream, streams] = [mine.stream, usual(others, "stream")];
  const slowSteps = step !== null && steps !== null && step > SLOW * steps && step - steps > ALIKE;
  const slowStreams = stream !== null && streams !== null && SLOW * stream < streams;
  if (!slowSteps && !slowStreams) return null;
  const batch = usual(others, "batch");
  if (mine.batch > SLOW * batch + 2) {
    return { kind: "busy", text: `busy: ${count(mine.batch)} sequences, others ${count(batch)}` };
  }
  if (slowSteps) return { kind: "slow", text: `slow: step ${milliseconds(step)}, others ${milliseconds(steps)}` };
  return { kind: "slow", text: `slow: ${rate(stream)} tokens/s a stream, others ${rate(streams)}` };
}

function byPrompts(mine, others) {
  const [speed, speeds] = [mine.speed, usual(others, "speed")];
  if (speed === null || speeds === null || SLOW * speed > speeds) return null;
  return { kind: "slow", text: `slow: ${count(speed)} prompt tokens/s, others ${count(speeds)}` };
}

/** Of those that know; null when none does. */
function usual(others, figure) {
  return median(others.map((one) => one[figure]).filter((one) => one !== null));
}
