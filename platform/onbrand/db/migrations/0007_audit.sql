-- depends: 0006_documents
-- The record of each brand: append-only, chained by hashes, without a word that people wrote.
set role onbrand_owner;

alter table audit.events
  add column user_id uuid,
  add column credential text check (char_length(credential) <= 80);
call app.keep_no_statistics('audit.events');

-- A field as it enters the hash: its length in bytes, itself, a comma (a netstring); `~,` where there is none.
-- Lengths go first, so that no two rows are hashed alike.
create function audit.field(v text) returns text
language sql immutable set search_path = '' as $$
  select coalesce(octet_length(v)::text || ':' || v, '~') || ','
$$;

-- What a line's hash is of; onbrand/client/audit_chain.py says the same in Python.
create function audit.hash_of(e audit.events) returns bytea
language sql stable set search_path = '' as $$
  select sha256(convert_to(
    audit.field('onbrand-audit-1') || audit.field(e.brand_id) || audit.field(e.seq::text)
    || audit.field(to_char(e.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    || audit.field(e.actor) || audit.field(e.user_id::text) || audit.field(e.credential)
    || audit.field(e.action) || audit.field(e.detail::text) || audit.field(encode(e.prev, 'hex')), 'utf8'))
$$;

-- Lines of before had the actor in one word and another hash: they are chained anew, once, here.
alter table audit.events no force row level security;
do $$
declare e audit.events; last text := ''; before bytea;
begin
  for e in select * from audit.events order by brand_id, seq loop
    if e.brand_id <> last then before := null; last := e.brand_id; end if;
    if e.actor like 'system:%' then
      e.credential := substr(e.actor, 8); e.actor := 'system';
    else
      e.user_id := e.actor::uuid; e.actor := 'user';
    end if;
    e.prev := before;
    e.hash := audit.hash_of(e);
    update audit.events set actor = e.actor, user_id = e.user_id, credential = e.credential, prev = e.prev,
      hash = e.hash where brand_id = e.brand_id and seq = e.seq;
    before := e.hash;
  end loop;
end $$;
alter table audit.events force row level security;

-- Ids, numbers, codes: no text that people wrote has a place here, and none fits in.
create function audit.is_plain(d jsonb) returns boolean
language sql immutable set search_path = '' as $$
  select jsonb_typeof(d) = 'object' and octet_length(d::text) <= 100000 and not exists (
    select 1 from jsonb_each(case jsonb_typeof(d) when 'object' then d else '{}' end) f(name, v)
    where f.name !~ '^[a-z][a-z0-9_]{0,39}$' or exists (
      select 1 from jsonb_array_elements(case jsonb_typeof(f.v) when 'array' then f.v else jsonb_build_array(f.v) end) x
      where case jsonb_typeof(x)
        when 'string' then char_length(x #>> '{}') > 300 or (x #>> '{}') collate "C" !~ '^[!-~]*$'
        when 'number' then x #>> '{}' !~ '^-?[0-9]{1,18}$'
        when 'object' then true when 'array' then true else false end))
$$;

-- Does the line say which object it is about? (A brand is known without.)
create function audit.names_its_object(action text, d jsonb) returns boolean
language sql immutable set search_path = '' as $$
  select action like 'brand.%' or exists (select 1 from jsonb_object_keys(d) k where k ~ '_ids?$')
$$;

alter table audit.events
  add constraint seq_counts check (seq > 0 and (seq = 1) = (prev is null)),
  add constraint known_actor check (actor in ('user', 'key', 'system')),
  add constraint someone_acted check (user_id is not null or actor = 'system'),
  add constraint credential_named check ((actor = 'user') = (credential is null)),
  add constraint action_is_a_word check (action ~ '^[a-z][a-z_]{0,29}\.[a-z][a-z_]{0,29}$'),
  add constraint detail_is_plain check (audit.is_plain(detail)),
  add constraint object_named check (audit.names_its_object(action, detail));

-- Nobody changes or removes a line, the table's owner included; and nobody but private.record adds one.
create function audit.tg_append_only() returns trigger
language plpgsql set search_path = '' as $$
begin
  if tg_op = 'INSERT' and current_user = 'onbrand_definer' then return new; end if;
  raise exception 'the record is append-only' using errcode = '42501';
end $$;
create trigger append_only before insert or update or delete on audit.events
  for each row execute function audit.tg_append_only();
create trigger never_emptied before truncate on audit.events
  for each statement execute function audit.tg_append_only();
alter table audit.events enable always trigger append_only;
alter table audit.events enable always trigger never_emptied;

reset role;
grant execute on function audit.field(text), audit.hash_of(audit.events), audit.is_plain(jsonb),
  audit.names_its_object(text, jsonb) to onbrand_definer;

set role onbrand_definer;
-- Add a line. Nobody may call this but our own functions; it holds the brand's record to the end of the transaction.
create function private.audit_append(b text, actor text, user_id uuid, credential text, what text, d jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
declare e audit.events;
begin
  e.brand_id := b; e.actor := audit_append.actor; e.user_id := audit_append.user_id;
  e.credential := audit_append.credential; e.action := what; e.detail := coalesce(d, '{}');
  if not coalesce(audit.is_plain(e.detail) and audit.names_its_object(what, e.detail), false) then
    raise exception 'the line is not plain, or names no object' using errcode = 'OB009';
  end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('audit', b));
  select l.seq + 1, l.hash into e.seq, e.prev from audit.events l where l.brand_id = b order by l.seq desc limit 1;
  e.seq := coalesce(e.seq, 1);
  e.at := clock_timestamp();
  e.hash := audit.hash_of(e);
  insert into audit.events select e.*;
end $$;

-- The same for the platform's own sweeps, which act for no member: `act` is 'system:' and the id of what they end.
create or replace function private.audit_append(b text, act text, what text, d jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.audit_append(b, 'system', null, substr(act, char_length('system:') + 1), what, d);
end $$;

-- Write one line into the brand's record. Who acts is read off the session, not taken from the caller: a user, a key on
-- behalf of its maker, or the system for one job on behalf of its owner. Called last in a transaction.
create or replace function private.record(b text, what text, d jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  if not coalesce(private.acts_in(b), false) then
    raise exception 'no record of this brand' using errcode = '42501';
  end if;
  if current_setting('role', true) = 'brand_system' then
    perform private.audit_append(b, 'system', private.ctx('on_behalf_of')::uuid, private.ctx('job_id'), what, d);
  else
    perform private.audit_append(b, case when private.ctx('key_id') is null then 'user' else 'key' end,
      private.uid(), private.ctx('key_id'), what, d);
  end if;
end $$;
reset role;
