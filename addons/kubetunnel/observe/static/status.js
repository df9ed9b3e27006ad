// How a service is, from what the API tells of it: the worst first, each with its reasons in words.

export const STATUSES = [
  { id: "failing", word: "Failing", tone: "bad" },
  { id: "degraded", word: "Degraded", tone: "warn" },
  { id: "healthy", word: "Healthy", tone: "good" },
  { id: "unchecked", word: "Unchecked", tone: "none" },
];
export const STATUS = Object.fromEntries(STATUSES.map((status, rank) => [status.id, { ...status, rank }]));

export const HEALTH_TONES = { healthy: "good", unhealthy: "bad", unknown: "none" };
export const HEALTH_WORDS = { healthy: "Healthy", unhealthy: "Failing", unknown: "Unchecked" };
export const FORWARD_TONES = { opening: "busy", ready: "good", draining: "warn", broken: "bad", closed: "none" };

export const isClosable = ({ state }) => state !== "closed" && state !== "draining";

const MOST_FAIL = 0.5; // of the requests: it fails
const SOME_FAIL = 0.05; // of the requests: worth a look
const RECENT_S = 60; // an error this new is worth a look, however few they are

// -> {status, rank, reasons, detail, command, at}: reasons are sentences without their stop, the gravest first; none
// where all is well. detail and command belong to the gravest: a client's error that is about something else, or was
// mended since, would lead astray.
export function judge(service, nowS) {
  const faults = [];
  const found = (id, about, reason) => faults.push({ rank: STATUS[id].rank, about, reason });
  const { error_rate: errors = 0 } = service;
  // pods as they were some time ago are no fault of now
  const { ready = 0, total = 0, pods = [] } = service.as_of == null ? service : {};
  const sick = pods.filter((pod) => pod.health === "unhealthy").length;

  if (total > 0 && ready === 0)
    found("failing", "pods", total === 1 ? "Its only pod is not ready" : `None of ${total} pods is ready`);
  else if (ready < total)
    found("degraded", "pods", `${total - ready} of ${total} pods ${total - ready === 1 ? "is" : "are"} not ready`);
  else if (total === 0 && service.health === "unhealthy") found("failing", "pods", "No pod stands behind it");

  // without a ready pod nothing is checked
  if (service.health === "unhealthy" && ready > 0) found("failing", "checks", "Health checks fail");
  else if (sick > 0) found("degraded", "checks", `Health checks fail on ${sick} of ${pods.length} pods`);
  else if (service.health === "degraded") found("degraded", "checks", "Health checks of a port fail");

  if (errors >= MOST_FAIL) found("failing", "requests", `${Math.round(errors * 100)}\u00a0% of requests fail`);
  else if (errors >= SOME_FAIL) found("degraded", "requests", `${Math.round(errors * 100)}\u00a0% of requests fail`);

  if (faults.length === 0 && isRecent(service.last_error, nowS)) found("degraded", "requests", "Failed less than a minute ago");
  faults.sort((a, b) => a.rank - b.rank);
  const rank = faults[0]?.rank ?? (service.health === "healthy" ? STATUS.healthy.rank : STATUS.unchecked.rank);
  const reasons = faults.map(({ reason }) => reason);
  return { status: STATUSES[rank], rank, reasons, ...told(faults[0]?.about, service) };
}

function told(about, { pods = [], last_error: error, command }) {
  const failing = pods.find((pod) => pod.failing);
  if (about === "checks") return { detail: failing ? `${failing.pod}, ${failing.failing}` : "", command };
  if (error && (about === "requests" || ["NoReadyEndpoints", "ServiceNotFound"].includes(error.reason)))
    return { detail: error.detail, command: error.command, at: error.at };
  return { detail: "", command };
}

function isRecent(error, nowS) {
  return error?.at != null && nowS - error.at < RECENT_S;
}

// "1 of 12 services is failing", the sentence that a glance shall catch.
export function headline(counts, total) {
  const of = (n, what) => `${n} of ${total} ${total === 1 ? "service" : "services"} ${n === 1 ? "is" : "are"} ${what}`;
  if (total === 0) return "No service is in use yet";
  if (counts.failing > 0) return of(counts.failing, "failing");
  if (counts.degraded > 0) return of(counts.degraded, "degraded");
  if (counts.unchecked === 0)
    return total === 1 ? "The one service in use is healthy" : `All ${total} services are healthy`;
  return total === 1 ? "The one service in use shows no fault" : `None of ${total} services shows a fault`;
}
