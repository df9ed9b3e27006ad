// The table of services: what fails first, one row element a service, updated in place.

import { copy, openListener } from "/dashboard/actions.js";
import { $, Rows, drawCounts, setAttr, setBadge, setText, show } from "/dashboard/dom.js";
import { age, count, errorRate, mainPort, ms, plural, rate, tryLine } from "/dashboard/format.js";
import { STATUSES, headline, judge } from "/dashboard/status.js";

const { compare } = new Intl.Collator(undefined, { numeric: true }); // api-9 before api-10
const byName = (a, b) => compare(a.service.service, b.service.service) || compare(a.key, b.key);
const most = (figure) => (a, b) => (figure(b.service) ?? -1) - (figure(a.service) ?? -1) || byName(a, b);
const ORDERS = {
  status: (a, b) => a.judged.rank - b.judged.rank || byName(a, b),
  name: byName,
  pods: most(({ total, as_of: asOf }) => (asOf == null ? total : null)),
  streams: most(({ streams }) => streams),
  rate: most(({ requests_per_s: r }) => r),
  errors: most(({ error_rate: r }) => r),
  p50: most(({ p50_ms: t }) => t),
  p99: most(({ p99_ms: t }) => t),
};
const ASCENDING = new Set(["name", "status"]);

export const serviceHash = ({ zone, namespace, service }) =>
  `#/service/${[zone, namespace, service].map(encodeURIComponent).join("/")}`;

// What the filter looks at.
export const serviceWords = (service) =>
  [
    service.service,
    service.namespace,
    service.zone,
    service.health,
    service.last_error?.reason,
    service.last_error?.detail,
    ...(service.ports ?? []).flatMap(({ port, name }) => [port, name]),
    ...(service.pods ?? []).map(({ pod }) => pod),
  ]
    .join(" ")
    .toLowerCase();

export class ServicesView {
  constructor(redraw) {
    this.redraw = redraw;
    this.order = "status";
    this.only = null; // a status' id
    this.settled = false;
    this.table = $("services");
    this.rows = new Rows(this.table, "t-service", write, begin);
    this.tallies = new Rows(
      $("tallies"),
      "t-tally",
      (fields, { status, n }, { element }) => {
        setText(fields.count, n);
        setText(fields.word, status.word);
        setAttr(element, "data-tone", status.tone);
        setAttr(element, "data-none", n === 0 ? "" : null);
        setAttr(element, "aria-pressed", this.only === status.id);
      },
      (_, row) =>
        row.element.addEventListener("click", () => {
          this.only = this.only === row.key ? null : row.key;
          redraw();
        }),
    );
    for (const button of this.table.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => {
        this.order = button.dataset.sort;
        this.settled = false;
        redraw();
      });
    }
    this.table.addEventListener("pointerleave", redraw);
    this.table.addEventListener("focusout", redraw);
    $("clear-filter").addEventListener("click", () => {
      this.only = null;
      $("filter").value = "";
      $("filter").focus();
      redraw();
    });
  }

  // Rows stand still under a pointer and around a focus: nobody shall press a button that has just moved there.
  get held() {
    return this.settled && (this.table.matches(":hover") || this.table.querySelector("tbody :focus") !== null);
  }

  render(state, matches, nowS) {
    const all = [...state.services].map(([key, service]) => ({
      key,
      service,
      judged: judge(service, nowS),
      zones: state.tunnel.zones,
      nowS,
    }));
    const counts = Object.fromEntries(
      STATUSES.map(({ id }) => [id, all.filter(({ judged }) => judged.status.id === id).length]),
    );
    if (this.only && counts[this.only] === 0) this.only = null;
    const shown = all.filter(
      ({ service, judged }) => (!this.only || judged.status.id === this.only) && matches(() => serviceWords(service)),
    );
    shown.sort(ORDERS[this.order]);
    for (const button of this.table.querySelectorAll("[data-sort]")) {
      const { sort } = button.dataset;
      setAttr(
        button.closest("th"),
        "aria-sort",
        sort === this.order ? (ASCENDING.has(sort) ? "ascending" : "descending") : null,
      );
    }
    this.tallies.render(all.length ? STATUSES.map((status) => [status.id, { status, n: counts[status.id] }]) : []);
    this.rows.render(
      shown.map((item) => [item.key, item]),
      this.held,
    );
    this.settled = true;
    show(this.table, shown.length > 0);
    show($("no-services"), state.known && all.length === 0);
    show($("none-found"), all.length > 0 && shown.length === 0);
    return { title: headline(counts, all.length), counts, lead: totals(all), found: shown.length, of: all.length };
  }
}

function totals(all) {
  if (all.length === 0) return "";
  const sum = (figure) => all.reduce((so, { service }) => so + (figure(service) ?? 0), 0);
  const now = (figure) => (service) => (service.as_of == null ? figure(service) : 0);
  const pods = `${count(sum(now(({ ready }) => ready)))} of ${count(sum(now(({ total }) => total)))} pods ready`;
  const streams = plural(
    sum(({ streams: n }) => n),
    "open stream",
  );
  return `${pods}, ${streams}, ${rate(sum(({ requests_per_s: r }) => r))} requests/s`;
}

function begin(fields, row) {
  fields.copy.addEventListener("click", () => copy(fields.copy, tryLine(row.item.service, mainPort(row.item.service))));
  fields.forward.addEventListener("click", () =>
    openListener(fields.forward, row.item.service, mainPort(row.item.service).port),
  );
  fields.copyCommand.addEventListener("click", () => copy(fields.copyCommand, fields.command.textContent));
}

function write(fields, { service, judged, zones, nowS }) {
  const { ready, total, error_rate: errors, as_of: asOf } = service;
  setBadge(fields.status, judged.status.tone, judged.status.word);
  setText(fields.link, service.service);
  setAttr(fields.link, "href", serviceHash(service));
  // the zone matters where there are several
  setText(fields.where, (zones?.length ?? 1) > 1 ? `${service.namespace}, ${service.zone}` : service.namespace);
  if (asOf == null) {
    setText(fields.pods, `${count(ready)}/${count(total)}`);
    setAttr(fields.pods, "data-tone", total > 0 && ready === 0 ? "bad" : ready < total ? "warn" : null);
    setAttr(fields.pods, "title", null);
  } else {
    setText(fields.pods, count(null));
    setAttr(fields.pods, "data-tone", null);
    setAttr(fields.pods, "title", `Not watched: ${count(ready)} of ${count(total)} were ready ${age(asOf, nowS)} ago`);
  }
  setText(fields.streams, count(service.streams));
  setText(fields.rate, rate(service.requests_per_s));
  setText(fields.errors, errorRate(service));
  setAttr(fields.errors, "data-tone", errors >= 0.5 ? "bad" : errors >= 0.05 ? "warn" : null);
  setText(fields.p50, ms(service.p50_ms));
  setText(fields.p99, ms(service.p99_ms));
  drawCounts(fields.spark, service.sparkline);
  const port = mainPort(service);
  const name = `${service.service} in ${service.namespace}`;
  show(fields.copy, port !== null);
  show(fields.forward, port !== null);
  if (port !== null) {
    const word = `Copy ${tryLine(service, port).split(" ")[0].replace("kube-tunnel", "command")}`;
    if (!fields.copy.dataset.label) setText(fields.copy, word);
    setAttr(fields.copy, "aria-label", `${word} for ${name}`);
    setAttr(fields.copy, "title", tryLine(service, port));
    setAttr(fields.forward, "aria-label", `Forward port ${port.port} of ${name} to a local port`);
    setAttr(fields.forward, "title", `Open a local port for port ${port.port}`);
  }
  const troubled = judged.reasons.length > 0;
  show(fields.problem, troubled);
  if (!troubled) return;
  // the figures beside it, in their colours, tell the rest
  setText(fields.reasons, `${judged.reasons[0]}.`);
  setText(fields.detail, judged.detail);
  setText(fields.when, judged.at ? `${age(judged.at, nowS)} ago` : "");
  setText(fields.command, judged.command);
  show(fields.remedy, Boolean(judged.command));
}
