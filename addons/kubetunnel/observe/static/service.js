// The page of one service: how it is and why, its pods, and a line to try for each of its ports.

import { closeForward, copy, openListener } from "/dashboard/actions.js";
import { $, Rows, drawCounts, setAttr, setBadge, setText, show } from "/dashboard/dom.js";
import { podKey } from "/dashboard/feed.js";
import { age, count, errorRate, ms, rate, tryLine } from "/dashboard/format.js";
import { FORWARD_TONES, HEALTH_TONES, HEALTH_WORDS, isClosable, judge } from "/dashboard/status.js";

export class ServiceView {
  constructor() {
    this.pods = new Rows($("pods").tBodies[0], "t-pod", writePod, (fields, row) => {
      fields.close.addEventListener("click", () => closeForward(fields.close, row.item.forward));
    });
    this.ports = new Rows($("ports").tBodies[0], "t-port", writePort, beginPort);
    for (const [button, text] of [
      ["s-copy", "s-command"],
      ["pods-copy", "pods-command"],
    ]) {
      $(button).addEventListener("click", () => copy($(button), $(text).textContent));
    }
  }

  // key: zone, namespace and service of the address
  render(state, key, nowS) {
    const service = state.services.get(key);
    const [, namespace, name] = key.split("/");
    show($("service"), service !== undefined);
    show($("no-such-service"), state.known && service === undefined);
    if (service === undefined) return { title: name, lead: `in ${namespace}` };
    const { status, reasons } = judge(service, nowS);
    setBadge($("s-status"), status.tone, status.word);
    setText($("s-reasons"), reasons.length ? `${reasons.join(". ")}.` : "");
    this.writeError(service.last_error, nowS);
    setText($("s-rate"), rate(service.requests_per_s));
    setText($("s-errors"), errorRate(service));
    setText($("s-p50"), service.p50_ms == null ? "–" : `${ms(service.p50_ms)} ms`);
    setText($("s-p99"), service.p99_ms == null ? "–" : `${ms(service.p99_ms)} ms`);
    setText($("s-streams"), count(service.streams));
    setText($("s-total"), count(service.requests_total));
    drawCounts($("s-spark").firstElementChild, service.sparkline);
    const peak = Math.max(0, ...(service.sparkline ?? []));
    setText($("s-peak"), peak ? `, at most ${count(peak)}` : "");
    setAttr($("s-spark"), "aria-label", `Requests in each of the last 60 seconds, at most ${count(peak)}`);
    const asOf = service.as_of ?? null;
    setText($("s-as-of"), asOf === null ? "" : `Not watched now: this is how they were ${age(asOf, nowS)} ago.`);
    show($("s-as-of"), asOf !== null);
    const pods = service.pods ?? [];
    this.pods.render(
      pods.map((pod) => [pod.pod, { pod, forward: state.forwards.get(podKey({ ...service, pod: pod.pod })) }]),
    );
    show($("pods"), pods.length > 0);
    show($("no-pods"), pods.length === 0);
    setText($("pods-command"), service.command);
    const ports = service.ports ?? [];
    this.ports.render(ports.map((port) => [`${port.protocol}/${port.port}`, { service, port }]));
    show($("ports"), ports.length > 0); // none: an alias, or deleted meanwhile
    show($("ports-title"), ports.length > 0);
    return {
      title: service.service,
      lead: `in ${[namespace, service.zone].join(", ")}${service.address ? `, at ${service.address}` : ""}`,
    };
  }

  writeError(error, nowS) {
    show($("s-fault"), Boolean(error));
    if (!error) return;
    setText($("s-error-reason"), error.reason);
    setText($("s-error-at"), error.at ? `${age(error.at, nowS)} ago` : "");
    setText($("s-error-detail"), error.detail);
    setText($("s-command"), error.command);
    show($("s-remedy"), Boolean(error.command));
  }
}

function writePod(fields, { pod, forward }) {
  setBadge(fields.status, HEALTH_TONES[pod.health] ?? "none", HEALTH_WORDS[pod.health] ?? pod.health);
  setText(fields.pod, pod.pod);
  setText(fields.why, pod.failing ? `Checks of ${pod.failing}` : "");
  show(fields.why, Boolean(pod.failing));
  setText(fields.ready, pod.ready ? "yes" : "no");
  setAttr(fields.ready, "data-tone", pod.ready ? null : "warn");
  const state = forward?.state ?? pod.state;
  setText(fields.state, state || "none");
  setAttr(fields.state, "data-tone", FORWARD_TONES[state]);
  setText(fields.streams, count(pod.streams));
  setText(fields.node, pod.node);
  show(fields.close, forward !== undefined && isClosable(forward));
  setAttr(fields.close, "aria-label", `Close forward to ${pod.pod}`);
}

function beginPort(fields, row) {
  fields.copy.addEventListener("click", () => copy(fields.copy, fields.line.textContent));
  fields.form.addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = fields.local.value.trim();
    openListener(fields.submit, row.item.service, row.item.port.port, typed === "" ? null : Number(typed));
  });
}

function writePort(fields, { service, port }) {
  const forwardable = (port.protocol ?? "TCP") === "TCP";
  setText(fields.port, port.port);
  setText(fields.name, [port.name, forwardable ? null : port.protocol].filter(Boolean).join(", "));
  if (forwardable) setText(fields.line, tryLine(service, port));
  show(fields.line, forwardable);
  show(fields.copy, forwardable);
  show(fields.note, !forwardable);
  show(fields.form, forwardable);
  setAttr(fields.copy, "aria-label", `Copy the line for port ${port.port}`);
  setText(fields.label, `Local port for port ${port.port}, empty for any`);
  setAttr(fields.submit, "aria-label", `Forward port ${port.port} to a local port`);
}
