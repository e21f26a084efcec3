-- depends: 0008_limits
-- The audit trail of each brand: append-only, linked by hashes, and without text that people wrote.
set role onbrand_owner;

-- Encode a field for the hash as a netstring: its length in bytes, a colon, the text, a comma; `~,` for null. The
-- length is part of it, so different events never have the same encoding.
create function audit.netstring(value text) returns text
language sql immutable set search_path = '' as $$
  select coalesce(octet_length(value)::text || ':' || value, '~') || ','
$$;

-- Whether the details contain only ids, numbers and codes. Text that people wrote does not pass.
create function audit.is_valid_detail(d jsonb) returns boolean
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

-- Whether the details contain the id of an object. Events of the brand itself need none.
create function audit.has_object_id(action text, d jsonb) returns boolean
language sql immutable set search_path = '' as $$
  select action like 'brand.%' or exists (select 1 from jsonb_object_keys(d) k where k ~ '_ids?$')
$$;

create table audit.events (
  seq bigint not null,
  brand_id text not null,
  at timestamptz not null,
  actor text not null,
  action text not null,
  detail jsonb not null,
  prev bytea,
  hash bytea not null,
  user_id uuid,
  credential text check (char_length(credential) <= 80),
  primary key (brand_id, seq),
  constraint seq_counts check (seq > 0 and (seq = 1) = (prev is null)),
  constraint known_actor check (actor in ('user', 'key', 'system')),
  constraint someone_acted check (user_id is not null or actor = 'system'),
  constraint credential_named check ((actor = 'user') = (credential is null)),
  constraint action_is_a_word check (action ~ '^[a-z][a-z_]{0,29}\.[a-z][a-z_]{0,29}$'),
  constraint detail_is_plain check (audit.is_valid_detail(detail)),
  constraint object_named check (audit.has_object_id(action, detail))
);

-- The hash of an event; onbrand/client/audit_chain.py computes the same in Python.
create function audit.event_hash(e audit.events) returns bytea
language sql stable set search_path = '' as $$
  select sha256(convert_to(
    audit.netstring('onbrand-audit-1') || audit.netstring(e.brand_id) || audit.netstring(e.seq::text)
    || audit.netstring(to_char(e.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    || audit.netstring(e.actor) || audit.netstring(e.user_id::text) || audit.netstring(e.credential)
    || audit.netstring(e.action) || audit.netstring(e.detail::text) || audit.netstring(encode(e.prev, 'hex')), 'utf8'))
$$;

-- Only private.audit_append inserts events. Nobody updates or deletes one, not even the owner of the table.
create function audit.tg_append_only() returns trigger
language plpgsql set search_path = '' as $$
begin
  if tg_op = 'INSERT' and current_user = 'onbrand_definer' then return new; end if;
  raise exception 'the record is append-only' using errcode = '42501';
end $$;
create trigger append_only before insert or update or delete on audit.events
  for each row execute function audit.tg_append_only();
create trigger no_truncate before truncate on audit.events
  for each statement execute function audit.tg_append_only();
alter table audit.events enable always trigger append_only;
alter table audit.events enable always trigger no_truncate;

call app.enable_brand_isolation('audit.events');
create policy admin_select on audit.events for select to authenticated using ((select private.is_admin()));
create policy operator_select on audit.events for select to onbrand_operator using (true);

reset role;

grant select, insert on audit.events to onbrand_definer;
grant select on audit.events to onbrand_operator, authenticated;
grant execute on function audit.netstring(text), audit.event_hash(audit.events), audit.is_valid_detail(jsonb),
  audit.has_object_id(text, jsonb) to onbrand_definer;

set role onbrand_definer;

-- Append an event. No login may execute it. It locks the brand's audit trail until the end of the transaction.
create function private.audit_append(brand text, actor text, user_id uuid, credential text, action text, detail jsonb)
returns void
language plpgsql volatile security definer set search_path = '' as $$
declare e audit.events;
begin
  e.brand_id := brand; e.actor := audit_append.actor; e.user_id := audit_append.user_id;
  e.credential := audit_append.credential; e.action := action; e.detail := coalesce(detail, '{}');
  if not coalesce(audit.is_valid_detail(e.detail) and audit.has_object_id(action, e.detail), false) then
    raise exception 'the line is not plain, or names no object' using errcode = 'OB009';
  end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('audit', brand));
  select l.seq + 1, l.hash into e.seq, e.prev from audit.events l where l.brand_id = brand order by l.seq desc limit 1;
  e.seq := coalesce(e.seq, 1);
  e.at := clock_timestamp();
  e.hash := audit.event_hash(e);
  insert into audit.events select e.*;
end $$;

-- Append an event of the platform's own background work, which acts for no member. `actor` is 'system:' and the id of
-- what it ends.
create function private.audit_append(brand text, actor text, action text, detail jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.audit_append(brand, 'system', null, substr(actor, char_length('system:') + 1), action, detail);
end $$;

-- Whether a user's transaction may record this action. Actions of the system, of an operator and of functions that
-- record their own are excluded; actions of admins require an admin.
create function private.may_record(action text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  if action ~ '^(job\.(start|sample|fail|submit|canceled)|generation\.(start|fail|complete|canceled)|model\.publish|image\.store'
      '|upload\.expire|brand\.set_limits|invitation\.(accept|decline))$' then
    return false;
  end if;
  if action ~ '^(key|member)\.|^invitation\.|^brand\.create$|^(asset|document|model|job)\.delete$' then
    return private.is_admin();
  end if;
  return true;
end $$;

-- Record one event of the transaction's brand. The actor comes from the claims and not from the arguments: a user, a
-- key on behalf of its creator, or the system for one job on behalf of its owner. Services call it last in a
-- transaction.
create function private.record(brand text, action text, detail jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  if not coalesce(private.may_act_in(brand), false) then
    raise exception 'no record of this brand' using errcode = '42501';
  end if;
  if current_setting('role', true) = 'brand_system' then
    perform private.audit_append(brand, 'system', private.ctx('on_behalf_of')::uuid, private.ctx('job_id'), action,
      detail);
    return;
  end if;
  if not private.may_record(action) then
    raise exception 'this is not for the caller to record' using errcode = '42501';
  end if;
  perform private.audit_append(brand, case when private.ctx('key_id') is null then 'user' else 'key' end,
    private.uid(), private.ctx('key_id'), action, detail);
end $$;

reset role;

grant execute on function private.record(text, text, jsonb) to authenticated, brand_system;
grant execute on function private.audit_append(text, text, text, jsonb) to onbrand_operator;
