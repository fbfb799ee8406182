/** The page put together. Drawing happens at most once a frame, and only while something moves. */

import { Batons } from "./batons.js";
import { burst } from "./burst.js";
import { Cards } from "./cards.js";
import { Chat } from "./chat.js";
import { byId, mark, say } from "./dom.js";
import { follow } from "./feed.js";
import { Fleet } from "./fleet.js";
import { rate } from "./format.js";
import { Options } from "./options.js";
import { theme } from "./theme.js";
import { Timeline } from "./timeline.js";

/** Milliseconds between two drawings of everything but the batons. */
const EVERY = 100;

const STANDS = { live: "live", lost: "connection lost; trying again" };
const ELSEWHERE = {
  admin: "API keys are needed here, so the live view is on the gateway's admin port (--admin-port).",
  off: "The live view is switched off (--live off).",
};

theme();
const about = await (await fetch("page/about")).json();
const options = new Options(about.key);
const fleet = new Fleet();
new Chat(options, (id) => fleet.own(id));
burst(options, (message) => notice(message));
options.load().catch((error) => notice(error.message));
if (about.live === "here") watch();
else {
  byId("connection").hidden = true;
  notice(ELSEWHERE[about.live]);
}

function notice(message) {
  byId("notice").hidden = !message;
  say(byId("notice"), message ?? "");
}

function watch() {
  const cards = new Cards(fleet);
  const timeline = new Timeline(fleet);
  const batons = new Batons(fleet, cards);
  let [due, drawnAt, moving, fresh] = [false, 0, false, true];
  byId("live").hidden = false;

  function draw(time) {
    due = false;
    if (time - drawnAt >= EVERY && (fresh || moving)) {
      drawnAt = time;
      fresh = false;
      cards.draw();
      totals();
      judge();
      moving = timeline.draw();
    }
    const passing = batons.draw(time);
    if (passing || moving || fresh) wake();
  }

  function wake() {
    if (!due) requestAnimationFrame(draw);
    due = true;
  }

  follow("live", (type, told) => {
    fleet.hear(type, told);
    if (type === "placed") batons.begin(fleet.requests.get(told.request)?.leg ?? {});
    fresh = true;
    wake();
  }, (state) => {
    mark(byId("connection"), "data-state", state);
    say(byId("connection"), STANDS[state]);
    mark(byId("live"), "data-stale", state === "lost" ? "yes" : null);
  });
  new ResizeObserver(() => {
    fresh = true;
    wake();
  }).observe(byId("timeline"));
}

function totals() {
  if (!fleet.gateway) return;
  byId("totals").hidden = false;
  for (const shown of byId("totals").querySelectorAll("dd")) {
    const number = fleet.gateway[shown.dataset.total];
    say(shown, Number.isInteger(number) ? number.toLocaleString("en") : rate(number));
  }
}

/** Who is not as the others, in one sentence. */
function judge() {
  const workers = [...fleet.workers.values()];
  const name = (worker) => fleet.nameOf(worker);
  const lost = workers.filter((worker) => worker.state !== "healthy");
  const slow = workers.filter((worker) => worker.verdict?.kind === "slow");
  const sentences = [
    ...slow.map((worker) => `${name(worker)} is slow: ${worker.verdict.text}.`),
    ...lost.map((worker) => `${name(worker)} is ${worker.state}.`),
  ];
  const well = workers.length ? "All workers are well, and none is slower than the others." : "No worker is there.";
  say(byId("verdict"), sentences.length ? sentences.slice(0, 4).join(" ") : well);
  mark(byId("verdict"), "data-state", sentences.length || !workers.length ? "trouble" : "well");
  const who = [...slow.map((worker) => `${name(worker)} is slow`), ...lost.map((worker) => `${name(worker)} is ${worker.state}`)];
  say(byId("announced"), who.join(", "));
}
