// Figures as people read them, each with its unit, and the command lines that the page offers.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const NONE = "–";

export const count = (n) => (n == null ? NONE : whole.format(n));
export const rate = (n) => (n == null ? NONE : n !== 0 && n < 9.95 ? tenth.format(n) : whole.format(n));
export const ms = rate;

// The API's error rate; none where the last 60 seconds had no request.
export function errorRate({ error_rate: fraction, sparkline }) {
  if (fraction == null || !sparkline?.some((n) => n > 0)) return NONE;
  const percent = fraction * 100;
  if (percent > 0 && percent < 0.1) return "<0.1 %";
  return `${percent === 0 || percent >= 9.95 ? whole.format(percent) : tenth.format(percent)} %`;
}

export function bytes(n) {
  if (n == null) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) {
    n /= 1024;
    i += 1;
  }
  return `${i === 0 ? whole.format(n) : rate(n)} ${units[i]}`;
}

// An age in its largest unit: 4 s, 12 min, 3 h, 2 d
export function age(sinceS, nowS) {
  const s = Math.max(0, Math.floor(nowS - sinceS));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

export function clock(atS) {
  return new Date(atS * 1000).toLocaleTimeString("en-GB");
}

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function quoted(word) {
  return /^[A-Za-z0-9_./:@%+=-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

const command = (...words) => words.map((word) => quoted(String(word))).join(" ");
const TUNNEL = location.port ? location.host : `${location.host}:80`;
const NOT_HTTP = new Set([22, 25, 53, 1433, 1521, 3306, 4222, 5432, 5672, 6379, 9042, 9092, 11211, 27017]);
const NOT_HTTP_NAMES = /postgres|mysql|redis|mongo|amqp|kafka|nats|smtp|ssh|memcache|sql|^tcp/;

const isHttp = ({ port, name }) => !NOT_HTTP.has(port) && !NOT_HTTP_NAMES.test(name ?? "");
const isGrpc = ({ name }) => /^grpc/.test(name ?? "");

// What to type to try a port of a service: it works as it stands, with no DNS set up.
export function tryLine(service, port) {
  const host = `${service.service}.${service.namespace}.svc.${service.zone}`;
  if (isGrpc(port)) return command("grpcurl", "-plaintext", "-authority", `${host}:${port.port}`, TUNNEL, "list");
  if (!isHttp(port))
    return command("kube-tunnel", "forward", "-n", service.namespace, `svc/${service.service}`, port.port);
  const tls = port.port === 443 || port.port === 8443 || /^https/.test(port.name ?? "");
  const url = `${tls ? "https" : "http"}://${host}${port.port === (tls ? 443 : 80) ? "" : `:${port.port}`}/`;
  return command("curl", ...(tls ? ["-k"] : []), "-x", `http://${TUNNEL}`, url);
}

export const firstRequest = ({ namespace, zones }) =>
  command(
    "curl",
    "-x",
    `http://${TUNNEL}`,
    `http://my-service.${namespace || "default"}.svc.${zones?.[0] ?? "cluster.local"}/`,
  );

// The port that a line for the whole service is about: one that speaks HTTP where there is one.
export function mainPort(service) {
  const ports = (service.ports ?? []).filter((port) => (port.protocol ?? "TCP") === "TCP");
  return ports.find((port) => isHttp(port) && !isGrpc(port)) ?? ports[0] ?? null;
}
