// The tunnel's state as its event stream tells it (server-sent events, HTML Living Standard 9.2): a snapshot at the
// start of each connection, then every change. EventSource alone gives up for good after a refusal and does not tell
// how long it has been alone, so each attempt here is a new one, with a growing delay.

const KINDS = [
  "snapshot",
  "service",
  "service_gone",
  "forward",
  "forward_gone",
  "listener",
  "listener_gone",
  "dns",
  "alive",
  "event",
];
const OPEN_TIMEOUT_MS = 10_000;
const SILENCE_MS = 16_000; // the tunnel says something every 5 s: it hangs, or the connection died unnoticed
const FIRST_DELAY_MS = 1_000;
const DELAY_CAP_MS = 15_000;
const EVENTS_KEPT = 200;

export const serviceKey = ({ zone, namespace, service }) => `${zone}/${namespace}/${service}`;
export const podKey = ({ zone, namespace, pod }) => `${zone}/${namespace}/${pod}`;
const keyed = (items, key) => new Map((items ?? []).map((item) => [key(item), item]));

export class State {
  services = new Map();
  forwards = new Map();
  listeners = new Map();
  dns = null;
  alive = { status: "ok" }; // whether requests can reach the cluster
  events = []; // newest first
  tunnel = {};
  known = false; // a snapshot has come

  apply(kind, data) {
    switch (kind) {
      case "snapshot":
        this.services = keyed(data.services, serviceKey);
        this.forwards = keyed(data.forwards, podKey);
        this.listeners = keyed(data.listeners, ({ id }) => String(id));
        this.dns = data.dns ?? null;
        this.alive = data.alive ?? { status: "ok" };
        this.events = [];
        for (const event of data.events ?? []) this.happened(event);
        this.tunnel = data.tunnel ?? {};
        this.known = true;
        break;
      case "service":
        this.services.set(serviceKey(data), data);
        break;
      case "service_gone":
        this.services.delete(serviceKey(data));
        break;
      case "forward":
        this.forwards.set(podKey(data), data);
        break;
      case "forward_gone":
        this.forwards.delete(podKey(data));
        break;
      case "listener":
        this.listeners.set(String(data.id), data);
        break;
      case "listener_gone":
        this.listeners.delete(String(data.id));
        break;
      case "dns":
        this.dns = data;
        break;
      case "alive":
        this.alive = data;
        break;
      case "event":
        this.happened(data);
        break;
    }
  }

  happened(event) {
    // the same after a reconnect: what was shown then is not shown, nor read out, anew
    const key = [event.at, event.level, event.text].join(" ");
    if (this.events.some((known) => known.key === key)) return;
    this.events.unshift({ ...event, key });
    this.events.length = Math.min(this.events.length, EVENTS_KEPT);
  }
}

export class Feed {
  // onChange(): the state changed; onLink(): `link` did: "connecting", "live", or "lost" with lostSince and retryAt (ms)
  constructor(url, state, onChange, onLink) {
    Object.assign(this, { url, state, onChange, onLink });
    this.link = "connecting";
    this.lostSince = null;
    this.retryAt = null;
    this.failures = 0;
  }

  connect() {
    clearTimeout(this.timer);
    this.source?.close();
    this.retryAt = null;
    this.source = new EventSource(this.url);
    this.timer = setTimeout(() => this.failed(), OPEN_TIMEOUT_MS);
    this.source.onopen = () => this.opened();
    this.source.onerror = () => this.failed();
    for (const kind of KINDS) {
      this.source.addEventListener(kind, (message) => {
        this.heard();
        this.state.apply(kind, JSON.parse(message.data));
        this.onChange();
      });
    }
    this.onLink();
  }

  opened() {
    this.heard();
    this.failures = 0;
    this.link = "live";
    this.lostSince = null;
    this.onLink();
  }

  heard() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.failed(), SILENCE_MS);
  }

  failed() {
    clearTimeout(this.timer);
    this.source.close();
    this.link = "lost";
    this.lostSince ??= Date.now();
    const delay = Math.min(FIRST_DELAY_MS * 2 ** this.failures, DELAY_CAP_MS) * (0.8 + 0.4 * Math.random());
    this.failures += 1;
    this.retryAt = Date.now() + delay;
    this.timer = setTimeout(() => this.connect(), delay);
    this.onLink();
  }

  // Somebody is looking, or the network is back: no reason to wait for the timer.
  hurry() {
    if (this.retryAt !== null) this.connect();
  }
}
