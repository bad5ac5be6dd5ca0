import { signal } from "@preact/signals";
import { call, offline, Problem, problemOf } from "./api.js";
import { onEvent, tell } from "./events.js";

/*
 * What is being fetched into the cache, and what this page asked for of it. A job ends with its daemon: as on the command line,
 * the next daemon is asked for the same again, and what is here already is not fetched twice. That is noticed by the `reset` of
 * the next daemon's events, or when somebody looks at the list. It is known as long as the page stays loaded.
 */

/**
 * @typedef {object} Job
 * @property {string} id
 * @property {string} kind
 * @property {string | null} target
 * @property {string} state
 * @property {{ done: number, total: number | null, unit: string }} progress
 * @property {{ code: string } | null} [error]
 */

/**
 * @typedef {object} Wish
 * @property {object} body what was asked for
 * @property {number} lost how often it was lost
 * @property {Job} job does it now, or is lost
 * @property {boolean} [asking] it is just being asked for again
 */

/** So many daemons may come and go while one image is fetched. */
const maxLost = 5;
/** Before each of the requests that follow one without an answer. */
const retryMs = [250, 500, 1000, 2000, 4000, 8000];

/** @type {import("@preact/signals").Signal<Job[]>} */
export const pulls = signal([]);

/** @type {Map<string, Wish>} by the id of the job */
const wishes = new Map();

/** @param {Job} job */
const isRunningPull = ({ kind, state }) => kind === "image-pull" && state === "running";

/** Whether it ended with its daemon, and is asked for again. @param {Job} job */
export const isAskedForAgain = ({ id, error }) => error?.code === "stopping" && wishes.has(id);

/** What an answer or an event told of a job. @param {Job} job */
export function noteJob(job) {
  const others = pulls.value.filter(({ id }) => id !== job.id);
  pulls.value = isRunningPull(job) ? [...others, job] : others;
  if (job.state !== "running" && !isAskedForAgain(job)) wishes.delete(job.id);
}

/** @param {object} body what POST /v1/images takes */
export async function pull(body) {
  const job = await untilAnswered(body);
  begin({ body, lost: 0, job });
}

/** @param {Wish} wish */
function begin(wish) {
  wishes.set(wish.job.id, wish);
  noteJob(wish.job);
}

/** Looks what is being fetched, and asks again for what went with its daemon. */
export async function readPulls() {
  const asked = [...wishes.keys()]; // what is asked for meanwhile need not be in the answer
  const { jobs } = await call("v1/jobs");
  pulls.value = jobs.filter(isRunningPull);
  for (const id of asked) {
    const job = jobs.find((/** @type {Job} */ each) => each.id === id);
    if (job !== undefined) noteJob(job);
    if (job === undefined || isAskedForAgain(job)) void askAgain(id);
  }
}

/** @param {string} id of the job that is lost */
async function askAgain(id) {
  const wish = wishes.get(id);
  if (wish === undefined || wish.asking === true) return;
  const { body, lost, job } = wish;
  wish.asking = true;
  try {
    if (lost === maxLost) throw lostTooOften();
    begin({ body, lost: lost + 1, job: await untilAnswered(body) });
    wishes.delete(id);
  } catch (error) {
    const problem = problemOf(error);
    wish.asking = false;
    if (!isUnanswered(problem)) tell({ type: "job", data: { ...job, state: "failed", error: problem } });
  }
}

/**
 * A daemon that was there a moment ago and gives no answer is asked again, with growing pauses.
 * @param {object} body
 * @returns {Promise<Job>}
 */
async function untilAnswered(body) {
  const wasThere = offline.value === null;
  for (const pauseMs of wasThere ? retryMs : []) {
    try {
      return await call("v1/images", { method: "POST", body, patient: true });
    } catch (error) {
      if (!isUnanswered(problemOf(error))) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
  return call("v1/images", { method: "POST", body, patient: true });
}

/** @param {Problem} problem */
const isUnanswered = ({ code }) => code === "offline" || code === "stopping";

const lostTooOften = () =>
  new Problem({
    status: 0,
    code: "job-lost",
    detail: `the daemon ended ${maxLost + 1} times while it did this`,
    hint: "look at the daemon's log",
  });

onEvent(({ type, data }) => {
  if (type === "job") noteJob(data);
  if (type === "reset" && wishes.size > 0) readPulls().catch(() => undefined); // the list is read again by the clock
});
